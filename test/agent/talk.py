#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An application that talks through its proxy, both non-blocking, in this network namespace.

    talk.py

The proxy (uid 1337, 127.0.0.1:15001) echoes. The application connects anywhere, and obeys lines
on standard input with a line on standard output each:

    ping    64 bytes there and back                          -> pong
    send    1000 bytes there; they come back and stay unread -> sent
    read    reads those, and compares                        -> read
    again   the same with a new connection from here on      -> again
    quit    ends both

"ready" is the first line: a connection has gone there and back, so that whoever learns from first
connections has seen one.
"""
import os
import select
import socket
import sys

PROXY_ID = 1337
LISTENER = ("127.0.0.1", 15001)
ANYWHERE = ("192.0.2.1", 80)
DEADLINE_S = 20


def serve(ready):
    os.setgroups([])
    os.setresgid(PROXY_ID, PROXY_ID, PROXY_ID)
    os.setresuid(PROXY_ID, PROXY_ID, PROXY_ID)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(LISTENER)
    listener.listen()
    listener.setblocking(False)
    os.write(ready, b"x")
    peers = []
    while True:
        for sock in select.select([listener, *peers], [], [])[0]:
            if sock is listener:
                peer = listener.accept()[0]
                peer.setblocking(False)
                peers.append(peer)
                continue
            data = sock.recv(65536)
            if not data:
                peers.remove(sock)
                sock.close()
                continue
            assert sock.send(data) == len(data), "more than a socket takes"


def wait(sock, write=False):
    ready = select.select([], [sock], [], DEADLINE_S)[1] if write else \
        select.select([sock], [], [], DEADLINE_S)[0]
    assert ready, "nothing happens"


def connect():
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(ANYWHERE)
    wait(sock, write=True)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert not error, os.strerror(error)
    return sock


def read(sock, size):
    data = b""
    while len(data) < size:
        wait(sock)
        part = sock.recv(size - len(data))
        assert part, "end of file"
        data += part
    return data


def ping(sock):
    for i in range(10):
        sent = bytes((i + j) % 256 for j in range(64))
        sock.send(sent)
        assert read(sock, len(sent)) == sent, "something else came back"


def talk():
    unread = [bytes(i * 7 % 256 for i in range(start, start + 500)) for start in (0, 500)]
    sock = connect()
    ping(sock)
    print("ready", flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "quit":
            break
        if command == "again":
            sock.close()
            sock = connect()
            ping(sock)
        elif command == "ping":
            ping(sock)
        elif command == "send":
            for part in unread:
                sock.send(part)
            wait(sock)
        elif command == "read":
            assert read(sock, 1000) == b"".join(unread), "something else came back"
        else:
            sys.exit(f"no command: {command}")
        print({"ping": "pong", "send": "sent"}.get(command, command), flush=True)


def main():
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        serve(told)
    try:
        assert os.read(ready, 1)
        talk()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


main()
