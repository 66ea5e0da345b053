# SPDX-License-Identifier: Apache-2.0
"""again.py GO SOURCE-PORT IPV4 IPV6 PORT: connects to both addresses from the one source port, says
"open", and waits until the file GO is there. Then it ends the connections, connects again from the same
port, and prints who has taken each connection."""
import os
import socket
import sys
import time

PATIENCE_S = 20


def connect(family, source, address, port):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(PATIENCE_S)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", source))
    s.connect((address, port))
    return s


def label(s):
    report = s.makefile().readline()
    return dict(word.partition("=")[::2] for word in report.split())["label"]


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            sys.exit("nothing has happened")
        time.sleep(0.01)


def connect_again(*place):
    """The port is free again a second after the end (tcp_tw_reuse)."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connect(*place)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def main():
    go, source, ipv4, ipv6, port = sys.argv[1:]
    places = [(socket.AF_INET, int(source), ipv4, int(port)),
              (socket.AF_INET6, int(source), ipv6, int(port))]
    before = [connect(*place) for place in places]
    for s in before:
        if label(s) != "app":
            sys.exit("the first connections did not reach the application")
    print("open", flush=True)
    wait_for(lambda: os.path.exists(go))
    for s in before:
        s.shutdown(socket.SHUT_WR)
        while s.recv(4096):
            pass
        s.close()
    for place in places:
        print(label(connect_again(*place)))


main()
