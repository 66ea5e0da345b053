#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A client of <run-dir>/agent.sock for the tests, written from the protocol's text and from none
of the product's code, so that both can be wrong only in different ways.

    agent_client.py RUN_DIR [--netns PATH] [--raw] [--timeout S] REQUEST...

Sends each REQUEST (JSON; with --raw any bytes) as one packet on one connection, prints each answer
on a line. Exit status: 0 when all answers say ok, 1 when one does not, 3 when there is none.
"""
import argparse
import array
import json
import os
import socket
import sys


def receive(sock):
    """One answer; parts of a long one are joined. None at end of file."""
    text = ""
    while True:
        packet = sock.recv(1 << 20)
        if not packet:
            return None
        answer = json.loads(packet)
        if "part" not in answer:
            return packet.decode()
        text += answer["part"]
        if not answer["more"]:
            return text


def send(sock, packet, netns):
    ancillary = []
    if netns:
        fd = os.open(netns, os.O_RDONLY)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg([packet], ancillary)
    if netns:
        os.close(fd)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir")
    parser.add_argument("--netns")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--timeout", type=float, default=20)
    parser.add_argument("requests", nargs="+")
    args = parser.parse_args()
    status = 0
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(args.timeout)
        sock.connect(os.path.join(args.run_dir, "agent.sock"))
        for request in args.requests:
            if not args.raw:
                request = json.dumps({"v": 1, **json.loads(request)})
            send(sock, request.encode(), args.netns)
        for _ in args.requests:
            answer = receive(sock)
            if answer is None:
                print("end of file", file=sys.stderr)
                return 3
            print(answer)
            if json.loads(answer).get("ok") is not True:
                status = 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 3
    return status


if __name__ == "__main__":
    sys.exit(main())
