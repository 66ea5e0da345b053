# SPDX-License-Identifier: Apache-2.0
"""Bytes both ways at once over TCP, and an end of one direction while the other goes on.

Usage: stream.py serve PORT
       stream.py dial ADDRESS PORT BYTES CONNECTIONS SECONDS

The server, on both families, sends the client's address and how much the client will send, in one
line, and then as many bytes of its own; it says what came once the client has shut its direction
down, and only then ends. The client does that CONNECTIONS times at once, each in pieces of odd
sizes and not faster than in SECONDS, and prints one line: how many were right, and the address
that the server saw.
"""

import hashlib
import socket
import socketserver
import sys
import threading
import time

PIECE = 7919


def pattern(seed, size):
    block = hashlib.sha512(seed.encode()).digest() * 1024
    return (block * (size // len(block) + 1))[:size]


def in_pieces(sock, data, seconds):
    pieces = -(-len(data) // PIECE)
    for i in range(pieces):
        sock.sendall(data[i * PIECE : (i + 1) * PIECE])
        if seconds:
            time.sleep(seconds / pieces)


def read_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise EOFError(f"ended after {line!r}")
        line += byte
    return line.decode().strip()


class Stream(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(60)
        seed, size, seconds = read_line(self.request).split()
        peer = self.client_address[0].removeprefix("::ffff:")
        self.request.sendall(f"{peer}\n".encode())
        sender = threading.Thread(
            target=in_pieces, args=(self.request, pattern("server" + seed, int(size)), float(seconds))
        )
        sender.start()
        digest, total = hashlib.sha256(), 0
        while data := self.request.recv(65536):
            digest.update(data)
            total += len(data)
        sender.join()
        self.request.sendall(f"{total} {digest.hexdigest()}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


def stream(address, port, size, seconds, seed):
    """The address that the server saw; raises when anything is not as it should be."""
    sent, wanted = pattern(seed, size), pattern("server" + seed, size)
    with socket.create_connection((address, port), timeout=60) as sock:
        if sock.getpeername()[:2] != (address, port):
            raise ValueError(f"getpeername is {sock.getpeername()}")
        sock.sendall(f"{seed} {size} {seconds}\n".encode())
        peer = read_line(sock)
        sender = threading.Thread(target=in_pieces, args=(sock, sent, seconds))
        sender.start()
        got = bytearray()
        while len(got) < size:
            data = sock.recv(65536)
            if not data:
                raise EOFError(f"{len(got)} of {size} bytes")
            got += data
        sender.join()
        if got != wanted:
            raise ValueError("wrong bytes")
        sock.shutdown(socket.SHUT_WR)
        answer = read_line(sock)
        if answer != f"{size} {hashlib.sha256(sent).hexdigest()}":
            raise ValueError(f"the server got {answer}")
        if sock.recv(1):
            raise ValueError("bytes after the end")
    return peer


def dial(address, port, size, connections, seconds):
    peers, failures = set(), []

    def one(number):
        try:
            peers.add(stream(address, port, size, seconds, f"{number}"))
        except (OSError, EOFError, ValueError) as e:
            failures.append(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=one, args=(i,)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"ok={connections - len(failures)} peers={','.join(sorted(peers))}", *failures[:1])
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        with Server(("::", int(sys.argv[2])), Stream) as server:
            server.serve_forever()
    sys.exit(dial(sys.argv[2], *map(int, sys.argv[3:6]), float(sys.argv[6])))
