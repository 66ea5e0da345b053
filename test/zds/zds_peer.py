# SPDX-License-Identifier: Apache-2.0
"""A ztunnel for tests: the other end of ZDS, byte by byte, without any protobuf library."""

import array
import os
import socket

HELLO = b"\x08\x01"
ACK = b"\x0a\x00"
SNAPSHOT_SENT = b"\x1a\x00"
BUFFER = 1024  # ztunnel's
DEADLINE_S = 20


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, data):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def add_bytes(uid, name="pod", namespace="default", account="default"):
    workload = field(1, name.encode()) + field(2, namespace.encode()) + field(3, account.encode())
    return field(1, field(1, uid.encode()) + field(2, workload))


def keep_bytes(uid):
    return field(5, field(1, uid.encode()))


def del_bytes(uid):
    return field(2, field(2, uid.encode()))


def nack_bytes(text):
    return field(1, field(1, text.encode()))


class Closed(Exception):
    """The agent has closed the connection."""


class Message:
    """A request as it came: .data, .fds (closed with the message), .netns its only one's inode."""

    def __init__(self, data, fds):
        self.data = data
        self.fds = len(fds)
        self.netns = os.fstat(fds[0]).st_ino if len(fds) == 1 else None

    def __repr__(self):
        return f"{self.data!r} with {self.fds} descriptors"


class Peer:
    def __init__(self, path, hello=True):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(path)
        if hello:
            self.send(HELLO)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.send(data)

    def send_fds(self, data, fds):
        self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def ack(self):
        self.send(ACK)

    def nack(self, text):
        self.send(nack_bytes(text))

    def receive(self):
        try:
            data, control, flags, _ = self.sock.recvmsg(BUFFER, socket.CMSG_SPACE(16 * 4))
        except ConnectionResetError as error:
            raise Closed from error
        fds = array.array("i")
        for level, kind, payload in control:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS), (level, kind)
            fds.frombytes(payload[: len(payload) // 4 * 4])
        message = Message(data, fds)
        for fd in fds:
            os.close(fd)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), f"cut: {message}"
        if not data:
            raise Closed
        return message

    def expect(self, data, fds=None):
        """The next message is this one; an Add has one descriptor, and nothing else has any."""
        message = self.receive()
        assert message.data == data, f"{message}, not {data!r}"
        want = (1 if data[0] == 0x0A else 0) if fds is None else fds
        assert message.fds == want, f"{message}, not {want}"
        return message

    def nothing(self, seconds=0.1):
        """No message comes for a while."""
        self.sock.settimeout(seconds)
        try:
            message = self.receive()
        except TimeoutError:
            return
        finally:
            self.sock.settimeout(DEADLINE_S)
        raise AssertionError(f"unexpected: {message}")

    def closed(self):
        """The agent closes; what it sent before does not matter."""
        try:
            while True:
                self.receive()
        except Closed:
            pass

    def snapshot(self):
        """Takes the whole snapshot, with acks, and returns its messages."""
        messages = []
        while True:
            message = self.receive()
            self.ack()
            if message.data == SNAPSHOT_SENT:
                return messages
            messages.append(message)
