#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An agent that says what a test wants: fake_agent.py RUN_DIR MODE [ANSWER].

Listens on RUN_DIR/agent.sock, writes each request to RUN_DIR/request, and answers by MODE:
  text   the ANSWER as it is, in one packet
  parts  the ANSWER in packets of 1,000 characters, as the protocol splits a long one
  turns  a line of the ANSWER to each request in turn, the last one from then on
  hang   nothing, and keeps the connection open
  close  nothing, and closes the connection
It prints "ready" once it listens, and ends with its standard input, so that it cannot outlive
the test that started it.
"""
import json
import os
import select
import socket
import sys

PART = 1000


def packets(mode, answer):
    if mode in ("text", "turns"):
        return [answer]
    parts = [answer[i : i + PART] for i in range(0, len(answer), PART)]
    return [
        json.dumps({"v": 1, "more": i + 1 < len(parts), "part": part})
        for i, part in enumerate(parts)
    ]


def serve(connection, run_dir, mode, answer):
    request = connection.recv(65537)
    with open(os.path.join(run_dir, "request"), "wb") as out:
        out.write(request)
    if mode in ("text", "parts", "turns"):
        for packet in packets(mode, answer):
            connection.send(packet.encode("utf-8", "surrogateescape"))


def main():
    run_dir, mode = sys.argv[1:3]
    answer = sys.argv[3] if len(sys.argv) > 3 else ""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.path.join(run_dir, "agent.sock"))
    listener.listen(8)
    print("ready", flush=True)
    kept = []
    turns = answer.splitlines()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if mode == "turns":
            answer = turns.pop(0) if len(turns) > 1 else turns[0]
        serve(connection, run_dir, mode, answer)
        if mode == "hang":
            kept.append(connection)
        else:
            connection.close()


main()
