# SPDX-License-Identifier: Apache-2.0
"""A client as Python programs are: http.client, with sockets in the modes that they have.

Usage: python_client.py WAY ADDRESS PORT COUNT SECONDS

    blocking  no timeout
    timeout   a timeout, so poll() before every call on a socket that does not block
    turned    connects without blocking, then blocks (redis clients and others)

The same requests, bytes and exit statuses as http_client.c.
"""

import http.client
import select
import signal
import socket
import sys

SIZES = (1, 64, 1000, 16384, 1048576)
STALLED, UNLIKE_TCP, WRONG_BYTES = 3, 4, 5
BLOCKS = [bytes(low ^ code for low in range(256)) for code in range(256)]


def body_of(size, seed):
    return b"".join(
        BLOCKS[(block * 31 ^ (block >> 8) * 57 ^ seed * 101) & 255]
        for block in range((size + 255) // 256)
    )[:size]


class Stalled(Exception):
    pass


def on_alarm(_signal, _frame):
    raise Stalled


def connected(way, address, port, seconds):
    if way == "blocking":
        return http.client.HTTPConnection(address, port)
    if way == "timeout":
        return http.client.HTTPConnection(address, port, timeout=seconds)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex((address, port))
    select.select([], [sock], [], seconds)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise ConnectionError("connect")
    sock.setblocking(True)
    connection = http.client.HTTPConnection(address, port)
    connection.sock = sock
    return connection


def exchange(connection, number):
    kind = ("bytes", "chunked", "echo", "echo")[number % 4]
    size = SIZES[number // 4 % len(SIZES)]
    body = body_of(size, number)
    path = f"/{kind}/{size}/{number}"
    if kind != "echo":
        connection.request("GET", path)
    elif number % 4 == 2:
        connection.request("POST", path, body)
    else:
        parts = (body[at : at + 5000] for at in range(0, size, 5000))
        connection.request("POST", path, parts, encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})
    answer = connection.getresponse()
    if answer.status != 200:
        print(f"request {number} ({kind}, {size} bytes): status {answer.status}")
        sys.exit(1)
    if answer.read() != body:
        print(f"request {number} ({kind}, {size} bytes): wrong bytes")
        sys.exit(WRONG_BYTES)


def main(way, address, port, count, seconds):
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(seconds)
    number = 0
    try:
        connection = connected(way, address, port, seconds)
        for number in range(count):
            exchange(connection, number)
    except (Stalled, TimeoutError):
        print(f"stalled after {number} requests")
        sys.exit(STALLED)
    except BlockingIOError as error:
        print(f"unlike TCP after {number} requests: {error}")
        sys.exit(UNLIKE_TCP)
    print(f"{count} requests right")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
