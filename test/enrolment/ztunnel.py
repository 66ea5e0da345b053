#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A ztunnel that can be late, silent or unwilling, and that says which pods it has.

  ztunnel.py [--delay SECONDS] [--refuse TEXT] [--silent] SOCKET FILE

Each Add is answered SECONDS later, with an error (%d is how many there were), or not at all;
everything else is at once. FILE
has the uids of its pods, one on a line: those that it was told of last, as a real one serves them.
Connects again whenever the agent goes away.
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "zds"))
from zds_peer import Closed, Peer  # noqa: E402

ADD, DEL, SNAPSHOT_SENT, KEEP = 0x0A, 0x12, 0x1A, 0x2A
RETRY_S = 0.02


def uid_in(data):
    """The first field of that kind, length and bytes, of the message in the message."""
    inner = data[2:] if data[1] < 0x80 else data[3:]
    return inner[2 : 2 + inner[1]].decode()


class Ztunnel:
    def __init__(self, arguments):
        self.arguments = arguments
        self.pods = set()
        self.refused = 0

    def write(self):
        path = self.arguments.file
        with open(path + ".new", "w") as file:
            file.writelines(uid + "\n" for uid in sorted(self.pods))
        os.rename(path + ".new", path)

    def answer_add(self, peer, uid):
        time.sleep(self.arguments.delay)
        if self.arguments.refuse:
            self.refused += 1
            peer.nack(self.arguments.refuse.replace("%d", str(self.refused)))
            return
        if not self.arguments.silent:
            self.pods.add(uid)
            self.write()
            peer.ack()

    def serve(self, peer):
        known, snapshot = set(), True
        while True:
            data = peer.receive().data
            if data[0] == ADD:
                known.add(uid_in(data))
                self.answer_add(peer, uid_in(data))
                continue
            if data[0] == KEEP:
                known.add(uid_in(data))
            elif data[0] == DEL:
                self.pods.discard(uid_in(data))
            elif data[0] == SNAPSHOT_SENT and snapshot:
                snapshot = False
                self.pods &= known
            self.write()
            peer.ack()

    def run(self):
        self.write()
        while True:
            try:
                with Peer(self.arguments.socket) as peer:
                    peer.sock.settimeout(None)
                    self.serve(peer)
            except (Closed, OSError):
                time.sleep(RETRY_S)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0)
    parser.add_argument("--refuse")
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("socket")
    parser.add_argument("file")
    Ztunnel(parser.parse_args()).run()


if __name__ == "__main__":
    main()
