# SPDX-License-Identifier: Apache-2.0
"""An agent for the plugin's tests: it records what it is asked and answers as it is told to."""

import json
import os
import socket
import tempfile
import threading

PACKET_MAX = 64 * 1024

HANG = object()  # answer of a behaviour: keep the connection open, say nothing
DIE = object()  # close it unanswered


def ok(**extra):
    return {"v": 1, "ok": True, "decision": "redirect", "reason": "test", "engine": "ebpf", **extra}


def refuse(code, retry=False, message="said by the test", v=1):
    return {"v": v, "ok": False, "code": code, "message": message, "retry": retry}


class FakeAgent:
    """behaviour(request) returns an object, raw bytes, a list of packets, HANG or DIE."""

    def __init__(self, behaviour=lambda request: ok()):
        self.behaviour = behaviour
        self.requests = []
        self.namespaces = []  # inode of the descriptor that came with each request, or None
        self.directory = tempfile.TemporaryDirectory(prefix="sockmesh-plugin-")
        self.run_dir = self.directory.name
        self.held = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(os.path.join(self.run_dir, "agent.sock"))
        self.listener.listen(128)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        for peer in self.held:
            peer.close()
        self.directory.cleanup()

    def _serve(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer):
        data, fds, flags, _ = socket.recv_fds(peer, PACKET_MAX + 1, 8)
        inode = os.fstat(fds[0]).st_ino if fds else None
        for fd in fds:
            os.close(fd)
        request = json.loads(data)
        request["size"], request["fds"] = len(data), len(fds)
        self.namespaces.append(inode)
        self.requests.append(request)
        answer = self.behaviour(request)
        if answer is HANG:
            self.held.append(peer)
            return
        if answer is not DIE:
            for packet in answer if isinstance(answer, list) else [answer]:
                if not isinstance(packet, bytes):
                    packet = json.dumps(packet).encode()
                peer.send(packet)
        peer.close()
