# SPDX-License-Identifier: Apache-2.0
"""The agent's server for ztunnel, with ztunnels that behave and ztunnels that do not.

Each test drives a server of its own (zds_rig). Arguments select tests by a part of their name.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import zds_peer
from zds_peer import (
    ACK, DEADLINE_S, HELLO, SNAPSHOT_SENT, Closed, Peer, add_bytes, del_bytes, keep_bytes,
)

RIG = os.path.join(os.environ["BUILD_DIR"], "test", "zds", "zds_rig")
SHORT_MS = 300  # a deadline that a test waits for
STORM = 5000 if os.environ.get("SCALE") == "full" else 500
TESTS = []


def test(fn):
    TESTS.append(fn)
    return fn


def equal(got, want, what="value"):
    assert got == want, f"{what}: {got!r}, not {want!r}"


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.01)


class Rig:
    """A server as a process, its events in order."""

    def __init__(self, directory, start=True, **config):
        self.path = os.path.join(directory, "run", "ztunnel.sock")
        self.log = tempfile.TemporaryFile()
        settings = {"path": self.path, "max_accepts": 100000, **config}
        self.process = subprocess.Popen(
            [RIG, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        self.events = queue.Queue()
        self.stash = []  # events that came before an answer
        threading.Thread(target=self._read, daemon=True).start()
        self.expect("open")
        if start:
            self.tell(op="start")
            self.sync()

    def _read(self):
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put({"event": "ended"})

    def tell(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def event(self):
        if self.stash:
            return self.stash.pop(0)
        return self._next()

    def _next(self):
        try:
            return self.events.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"no event; log:\n{self.said()}") from None

    def expect(self, kind, **members):
        event = self.event()
        got = {name: event.get(name) for name in members}
        assert event["event"] == kind and got == members, \
            f"{event}, not {kind} {members}; log:\n{self.said()}"
        return event

    def done(self, ident, result, part=""):
        event = self.expect("done", id=ident, result=result)
        assert part in event["text"], event

    def _answer(self, kind):
        while True:
            event = self._next()
            if event["event"] == kind:
                return event
            self.stash.append(event)

    def sync(self):
        """Everything that was told before has been obeyed."""
        self.tell(op="sync")
        self._answer("synced")

    def status(self):
        self.tell(op="status")
        return self._answer("status")["status"]

    def counter(self, name):
        return self.status()["counters"][name]

    def put(self, uid, **more):
        self.tell(op="put", uid=uid, **more)

    def remove(self, uid, ident=None):
        self.tell(op="remove", uid=uid, id=ident or f"-{uid}")

    def find(self, uid, netns="/proc/self/ns/net"):
        """From now on the namespace can be opened."""
        self.tell(op="netns", uid=uid, netns=netns)
        self.sync()

    def know(self, uid, netns="/proc/self/ns/net"):
        """A pod taken over, whose namespace can be opened."""
        self.find(uid, netns)
        self.tell(op="remember", uid=uid)
        self.sync()

    def peer(self, hello=True):
        return Peer(self.path, hello)

    def ready(self, n):
        self.expect("peers", ready=n)

    def joined(self, n=1):
        """A ztunnel that has taken its snapshot; n are ready now."""
        peer = self.peer()
        peer.snapshot()
        self.ready(n)
        return peer

    def fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def said(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def close(self):
        self.tell(op="close")
        while self.event()["event"] != "ended":
            pass
        equal(self.process.wait(DEADLINE_S), 0, "the rig's exit status")
        assert not os.path.exists(self.path), "the socket stayed"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.log.close()


@contextlib.contextmanager
def directory():
    path = tempfile.mkdtemp(prefix="sockmesh-zds.")
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def server(**config):
    """A rig that still works after the test, and has closed every descriptor."""
    with directory() as path:
        rig = Rig(path, **config)
        fds = rig.fds()
        try:
            yield rig
            if config.get("start", True):
                wait_for(lambda: rig.status()["connections"] == [], "connections ended")
                rig.stash.clear()
                with rig.joined():
                    pass
                rig.ready(0)
                equal(rig.fds(), fds, "descriptors of the rig")
            rig.close()
        finally:
            rig.kill()


@contextlib.contextmanager
def namespace():
    """A network namespace: the path by which it can be opened."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        yield f"/proc/{process.pid}/ns/net"
        process.stdin.close()


def inode(path):
    return os.stat(path).st_ino


# ---- what a ztunnel that behaves sees -----------------------------------------------------------


@test
def a_hello_is_answered_by_the_snapshot_one_message_at_a_time():
    with server() as rig, namespace() as netns:
        rig.know("uid-1", netns)
        rig.tell(op="remember", uid="uid-2")
        rig.sync()
        rig.put("uid-3", name="web-0", namespace="shop", serviceAccount="seller", netns=netns)
        rig.done("uid-3", "no-proxy")
        rig.find("uid-3", netns)
        with rig.peer() as peer:
            equal(peer.expect(add_bytes("uid-1")).netns, inode(netns), "namespace")
            peer.nothing()
            peer.ack()
            peer.expect(keep_bytes("uid-2"))
            peer.nothing()
            peer.ack()
            message = peer.expect(add_bytes("uid-3", "web-0", "shop", "seller"))
            equal(message.netns, inode(netns), "namespace")
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.nothing()
            equal(rig.status()["ready"], 0)
            peer.ack()
            rig.ready(1)
            peer.nothing()
        rig.ready(0)
        for uid in "uid-1", "uid-2", "uid-3":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def pods_are_added_and_deleted_with_acks_for_each():
    with server() as rig, namespace() as netns:
        with rig.joined() as peer:
            rig.put("uid-1", netns=netns)
            equal(peer.expect(add_bytes("uid-1")).netns, inode(netns), "namespace")
            rig.put("uid-2", netns=netns)
            peer.nothing()
            peer.ack()
            rig.done("uid-1", "acked")
            peer.expect(add_bytes("uid-2"))
            peer.nack("cannot bind: Address already in use")
            rig.done("uid-2", "nacked", "cannot bind: Address already in use")
            status = rig.status()
            equal([pod["uid"] for pod in status["refusedPods"]], ["uid-2"])
            assert "Address already in use" in status["lastError"], status
            for uid in "uid-1", "uid-2":
                rig.remove(uid)
                peer.expect(del_bytes(uid))
                peer.ack()
                rig.done(f"-{uid}", "acked")
            equal(rig.status()["refusedPods"], [])
        rig.ready(0)


@test
def nobody_is_accepted_before_the_pods_are_known():
    with server(start=False) as rig:
        with rig.peer() as peer:
            peer.nothing()
            rig.know("uid-1")
            rig.tell(op="start")
            peer.expect(add_bytes("uid-1"))
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.ack()
            rig.ready(1)


@test
def a_pod_that_is_put_during_a_snapshot_is_part_of_it():
    with server() as rig:
        rig.know("uid-1")
        with rig.peer() as peer:
            peer.expect(add_bytes("uid-1"))
            rig.put("uid-2")
            rig.sync()
            peer.ack()
            peer.expect(add_bytes("uid-2"))
            peer.ack()
            rig.done("uid-2", "acked")
            peer.expect(SNAPSHOT_SENT)
            rig.put("uid-3")
            rig.sync()
            peer.nothing()
            peer.ack()
            rig.ready(1)
            peer.expect(add_bytes("uid-3"))
            peer.ack()
            rig.done("uid-3", "acked")
        rig.ready(0)
        for uid in "uid-1", "uid-2", "uid-3":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def a_pod_that_is_removed_during_a_snapshot_is_deleted_after_it():
    with server() as rig:
        rig.know("uid-1")
        rig.know("uid-2")
        with rig.peer() as peer:
            peer.expect(add_bytes("uid-1"))
            rig.remove("uid-1")
            rig.remove("uid-2")
            rig.sync()
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.ack()
            rig.ready(1)
            for uid in "uid-1", "uid-2":
                peer.expect(del_bytes(uid))
                peer.ack()
                rig.done(f"-{uid}", "acked")
        rig.ready(0)


@test
def a_pod_that_returns_during_a_snapshot_is_not_deleted_after_it():
    with server() as rig, namespace() as netns:
        rig.know("uid-1")
        with rig.peer() as peer:
            peer.expect(add_bytes("uid-1"))
            rig.remove("uid-1")
            rig.put("uid-1", netns=netns)
            rig.done("-uid-1", "lost", "put again")
            peer.ack()
            equal(peer.expect(add_bytes("uid-1")).netns, inode(netns), "namespace")
            # And away again: once more named by the snapshot, so it has to be deleted.
            rig.remove("uid-1")
            rig.done("uid-1", "lost", "removed")
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.ack()
            rig.ready(1)
            peer.expect(del_bytes("uid-1"))
            peer.ack()
            rig.done("-uid-1", "acked")
            peer.nothing()
        rig.ready(0)


@test
def a_namespace_may_be_removed_and_put_in_any_order_when_ready():
    with server() as rig:
        with rig.joined() as peer:
            rig.put("uid-1", id="a")
            peer.expect(add_bytes("uid-1"))
            rig.put("uid-1", id="b")
            rig.done("a", "lost", "put again")
            rig.remove("uid-1")
            rig.done("b", "lost", "removed")
            rig.put("uid-1", id="c")
            rig.sync()
            peer.ack()
            peer.expect(del_bytes("uid-1"))
            peer.ack()
            rig.done("-uid-1", "acked")
            peer.expect(add_bytes("uid-1"))
            peer.ack()
            rig.done("c", "acked")
            rig.remove("uid-1")
            peer.expect(del_bytes("uid-1"))
            peer.ack()
            rig.done("-uid-1", "acked")
        rig.ready(0)


@test
def adds_go_to_the_newest_and_deletions_to_all():
    with server() as rig:
        with rig.joined() as old:
            rig.put("uid-1")
            old.expect(add_bytes("uid-1"))
            old.ack()
            rig.done("uid-1", "acked")
            rig.find("uid-1")
            new = rig.peer()
            new.expect(add_bytes("uid-1"))
            # Not ready yet: the old one is still who answers. The new one gets it as well.
            rig.put("uid-2")
            old.expect(add_bytes("uid-2"))
            old.ack()
            rig.done("uid-2", "acked")
            new.ack()
            new.expect(keep_bytes("uid-2"))
            new.ack()
            new.expect(SNAPSHOT_SENT)
            new.ack()
            rig.ready(2)
            rig.put("uid-3")
            new.expect(add_bytes("uid-3"))
            new.ack()
            rig.done("uid-3", "acked")
            old.nothing()
            rig.remove("uid-1")
            for peer in old, new:
                peer.expect(del_bytes("uid-1"))
            old.ack()
            rig.sync()
            new.nack("no")
            rig.done("-uid-1", "nacked", "no")
            # The newest leaves: the old one gets what only that one had, and new pods.
            rig.find("uid-3")
            new.close()
            rig.ready(1)
            old.expect(add_bytes("uid-3"))
            rig.put("uid-4")
            old.ack()
            old.expect(add_bytes("uid-4"))
            old.ack()
            rig.done("uid-4", "acked")
        rig.ready(0)
        for uid in "uid-2", "uid-3", "uid-4":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def a_rolling_replacement_loses_no_pod():
    with server() as rig:
        rig.find("uid-0")
        old = rig.joined()
        uids = []
        for generation in range(5):
            uid = f"uid-{generation}"
            rig.find(uid)
            rig.put(uid)
            old.expect(add_bytes(uid))
            old.ack()
            rig.done(uid, "acked")
            uids.append(uid)
            new = rig.peer()
            equal([m.data for m in new.snapshot()], [add_bytes(uid) for uid in uids])
            rig.ready(2)
            old.close()
            rig.ready(1)
            new.nothing(0.05)
            old = new
        old.close()
        rig.ready(0)
        for uid in uids:
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


# ---- what a ztunnel that does not behave can do -------------------------------------------------


@test
def without_a_hello_the_connection_ends():
    with server(hello_timeout_ms=SHORT_MS) as rig:
        with rig.peer(hello=False) as peer:
            start = time.monotonic()
            rig.put("uid-1")
            rig.done("uid-1", "no-proxy")
            peer.closed()
            assert time.monotonic() - start > SHORT_MS / 1000 / 2, "too soon"
        equal(rig.counter("timeouts"), 1)
        rig.remove("uid-1")
        rig.done("-uid-1", "no-proxy")


@test
def what_is_no_hello_ends_the_connection():
    with server() as rig:
        garbage = [ACK, b"\xff", b"\x08", b"\x08\x01\x0a", b"x" * 60000, b"x" * 70000,
                   b"\x0a\xff\xff\xff\xff\x0f", b"\0" * 1000]
        for data in garbage:
            with rig.peer(hello=False) as peer:
                peer.send(data)
                peer.closed()
        equal(rig.counter("dropped"), len(garbage))
        # Fields and versions that are not known yet are no reason.
        for data in b"\x08\x07", b"\x08\x01\x12\x03new":
            with rig.peer(hello=False) as peer:
                peer.send(data)
                peer.expect(SNAPSHOT_SENT)
                peer.ack()
                rig.ready(1)
            rig.ready(0)
        # An empty packet looks like the end.
        with rig.peer(hello=False) as peer:
            peer.send(b"")
            peer.closed()


@test
def two_hellos_end_the_connection():
    with server() as rig:
        with rig.joined() as peer:
            peer.send(HELLO)
            peer.closed()
        rig.ready(0)


@test
def a_connection_may_end_at_every_step():
    def step(rig, name):
        peer = rig.peer(hello=name != "connected")
        if name in ("connected", "said hello"):
            return peer
        peer.expect(add_bytes("uid-1"))
        if name == "got an Add":
            return peer
        peer.ack()
        if name == "acked an Add":
            return peer
        peer.expect(SNAPSHOT_SENT)
        if name == "got the end of the snapshot":
            return peer
        peer.ack()
        rig.ready(1)
        if name == "ready":
            return peer
        rig.put("uid-2", id=name)
        peer.expect(add_bytes("uid-2"))
        return peer

    with server() as rig:
        rig.know("uid-1")
        names = ["connected", "said hello", "got an Add", "acked an Add",
                 "got the end of the snapshot", "ready", "got another Add"]
        for name in names:
            step(rig, name).close()
            if name == "got another Add":
                rig.done(name, "lost", "closed the connection")
            if name in ("ready", "got another Add"):
                rig.ready(0)
            wait_for(lambda: rig.status()["connections"] == [], f"end after: {name}")
        # Half a close is one.
        with rig.joined() as peer:
            peer.sock.shutdown(socket.SHUT_WR)
            rig.ready(0)
            peer.closed()
        rig.remove("uid-1")
        rig.done("-uid-1", "no-proxy")


@test
def an_idle_connection_that_ends_is_noticed_at_once():
    with server() as rig:
        peer = rig.joined()
        start = time.monotonic()
        peer.close()
        rig.ready(0)
        assert time.monotonic() - start < 1, "not at once"
        rig.put("uid-1")
        rig.done("uid-1", "no-proxy")
        rig.remove("uid-1")
        rig.done("-uid-1", "no-proxy")


@test
def a_late_ack_is_never_taken_for_another():
    with server(ack_timeout_ms=SHORT_MS) as rig:
        with rig.joined() as peer:
            rig.put("uid-1")
            rig.put("uid-2")
            peer.expect(add_bytes("uid-1"))
            rig.done("uid-1", "timeout", "no answer to Add of pod uid-1")
            rig.done("uid-2", "timeout")
            rig.ready(0)
            with contextlib.suppress(OSError):
                peer.ack()
            peer.closed()
        with rig.peer() as peer:
            peer.expect(keep_bytes("uid-1"))
            peer.ack()
            peer.expect(keep_bytes("uid-2"))
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            rig.put("uid-2")
            peer.ack()
            rig.ready(1)
            peer.expect(add_bytes("uid-2"))
            peer.nack("this is for uid-2")
            rig.done("uid-2", "nacked", "this is for uid-2")
        rig.ready(0)
        for uid in "uid-1", "uid-2":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def a_snapshot_that_is_not_acked_ends_the_connection():
    with server(ack_timeout_ms=SHORT_MS) as rig:
        rig.know("uid-1")
        with rig.peer() as peer:
            peer.expect(add_bytes("uid-1"))
            rig.put("uid-2")
            rig.done("uid-2", "timeout")
            peer.closed()
        with rig.peer() as peer:
            for _ in range(2):
                peer.receive()
                peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.closed()
        equal(rig.counter("timeouts"), 2)
        for uid in "uid-1", "uid-2":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def what_a_silent_ztunnel_owes_another_one_answers():
    with server(ack_timeout_ms=SHORT_MS) as rig:
        with rig.joined() as old, rig.joined(2) as new:
            rig.put("uid-1")
            rig.put("uid-2")
            new.expect(add_bytes("uid-1"))
            new.closed()
            for uid in "uid-1", "uid-2":
                old.expect(add_bytes(uid))
                old.ack()
            rig.ready(1)
            rig.done("uid-1", "acked")
            rig.done("uid-2", "acked")
        rig.ready(0)
        for uid in "uid-1", "uid-2":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def a_put_does_not_wait_for_ever_for_a_slow_snapshot():
    with server(put_timeout_ms=SHORT_MS) as rig:
        rig.know("uid-1")
        with rig.peer() as peer:
            peer.expect(add_bytes("uid-1"))
            rig.put("uid-2")
            rig.done("uid-2", "timeout", "did not get to it")
            # It is still what ztunnel should have.
            peer.ack()
            peer.expect(keep_bytes("uid-2"))
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.ack()
            rig.ready(1)
        rig.ready(0)
        for uid in "uid-1", "uid-2":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def a_second_ack_ends_the_connection():
    with server() as rig:
        with rig.joined() as peer:
            rig.put("uid-1")
            peer.expect(add_bytes("uid-1"))
            rig.put("uid-2")
            rig.sync()
            # Both are there before the agent looks: it is stopped meanwhile.
            rig.process.send_signal(signal.SIGSTOP)
            peer.ack()
            peer.ack()
            rig.process.send_signal(signal.SIGCONT)
            rig.done("uid-1", "acked")
            rig.done("uid-2", "lost", "nobody asked for")
            rig.ready(0)
            peer.closed()


@test
def what_nobody_asked_for_ends_the_connection():
    with server() as rig:
        for data in ACK, HELLO, b"\xff\xff", zds_peer.nack_bytes("what?"):
            with rig.joined() as peer:
                peer.send(data)
                peer.closed()
            rig.ready(0)
        equal(rig.counter("dropped"), 4)


@test
def an_answer_that_is_none_ends_the_connection():
    with server() as rig:
        for data in b"\xff\xff", b"\x12\x00", b"\x0a\x7f", b"x" * 70000, b"\x0a\x02\x0a\x7f":
            with rig.joined() as peer:
                rig.put("uid-1")
                peer.expect(add_bytes("uid-1"))
                peer.send(data)
                rig.done("uid-1", "lost")
                rig.ready(0)
                peer.closed()
            rig.remove("uid-1")
            rig.done("-uid-1", "no-proxy")


@test
def a_long_error_text_is_an_error_and_no_end():
    with server() as rig:
        with rig.joined() as peer:
            for size in 900, 1100, 5000, 60000:
                rig.put("uid-1")
                peer.expect(add_bytes("uid-1"))
                peer.nack("caused by: " * (size // 11))
                rig.done("uid-1", "nacked", "caused by: caused by: ")
            rig.remove("uid-1")
            peer.expect(del_bytes("uid-1"))
            peer.ack()
            rig.done("-uid-1", "acked")
        rig.ready(0)


@test
def an_error_text_forges_no_line_of_the_log():
    with server() as rig:
        with rig.joined() as peer:
            rig.put("uid-1")
            peer.expect(add_bytes("uid-1"))
            peer.send(zds_peer.field(1, zds_peer.field(1, b"x\nerror forged=\"yes\"\xff\xfe")))
            rig.done("uid-1", "nacked", "x\nerror")
            assert "\nerror forged" not in rig.said(), rig.said()
            assert "forged" in json.dumps(rig.status()), "not in the status"
            rig.remove("uid-1")
            peer.expect(del_bytes("uid-1"))
            peer.ack()
            rig.done("-uid-1", "acked")
        rig.ready(0)


@test
def a_pod_that_is_refused_in_the_snapshot_does_not_stop_it():
    with server() as rig:
        for uid in "uid-1", "uid-2", "uid-3":
            rig.know(uid)
        with rig.peer() as peer:
            peer.expect(add_bytes("uid-1"))
            peer.ack()
            peer.expect(add_bytes("uid-2"))
            peer.nack("no such device")
            peer.expect(add_bytes("uid-3"))
            peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.ack()
            rig.ready(1)
            refused = rig.status()["refusedPods"]
            equal([(pod["uid"], pod["error"]) for pod in refused], [("uid-2", "no such device")])
            # Put again, and taken this time.
            rig.put("uid-2")
            peer.expect(add_bytes("uid-2"))
            peer.ack()
            rig.done("uid-2", "acked")
            equal(rig.status()["refused"], 0)
        rig.ready(0)
        with rig.peer() as peer:
            for _ in range(3):
                peer.receive()
                peer.ack()
            peer.expect(SNAPSHOT_SENT)
            peer.nack("not that")
            peer.closed()
        for uid in "uid-1", "uid-2", "uid-3":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


@test
def descriptors_that_nobody_asked_for_are_closed():
    with server() as rig:
        before = rig.fds()
        null = os.open("/dev/null", os.O_RDONLY)
        for count in 1, 2, 20, 250:
            with rig.peer(hello=False) as peer:
                peer.send_fds(HELLO, [null] * count)
                peer.closed()
            with rig.joined() as peer:
                rig.put("uid-1")
                peer.expect(add_bytes("uid-1"))
                peer.send_fds(ACK, [null] * count)
                rig.done("uid-1", "lost", "file descriptors")
                rig.ready(0)
                peer.closed()
            rig.remove("uid-1")
            rig.done("-uid-1", "no-proxy")
            equal(rig.fds(), before, "descriptors of the rig")
        os.close(null)


@test
def one_that_never_reads_holds_nobody_up():
    with server(ack_timeout_ms=SHORT_MS * 10) as rig:
        uids = [f"uid-{i}" for i in range(100)]
        for uid in uids:
            rig.know(uid)
        with rig.peer() as deaf:
            with rig.joined() as peer:
                rig.put("uid-new")
                peer.expect(add_bytes("uid-new"))
                peer.ack()
                rig.done("uid-new", "acked")
                states = [conn["state"] for conn in rig.status()["connections"]]
                equal(states, ["ready", "snapshot"])
                for uid in uids:
                    rig.remove(uid)
                    peer.expect(del_bytes(uid))
                    peer.ack()
                equal(rig.status()["connections"][1]["queuedRemovals"], len(uids))
                # The deaf one goes, and the removals that only it had not acked end.
                for uid in uids:
                    rig.done(f"-{uid}", "timeout")
            rig.ready(0)
            deaf.closed()
        rig.remove("uid-new")
        rig.done("-uid-new", "no-proxy")


@test
def removals_that_pile_up_end_the_connection():
    with server(max_queued=10) as rig:
        with rig.joined() as peer:
            rig.put("uid-1")
            peer.expect(add_bytes("uid-1"))
            for i in range(10):
                rig.remove(f"gone-{i}")
            equal(rig.status()["connections"][0]["queuedRemovals"], 10)
            rig.remove("gone-10")
            peer.closed()
            results = {}
            for _ in range(12):
                event = rig.expect("done")
                results[event["id"]] = event["result"]
            equal(set(results.values()), {"lost"})
            equal(len(results), 12)
            rig.ready(0)
        rig.remove("uid-1")
        rig.done("-uid-1", "no-proxy")


# ---- who may connect, and how often -------------------------------------------------------------


def connect_as_nobody(path):
    """0: let in and closed; 1: not let in; 2: something else."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 2
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with Peer(path, hello=False) as peer:
            peer.closed()
        status = 0
    except PermissionError:
        status = 1
    finally:
        os._exit(status)


@test
def a_peer_that_is_not_root_is_refused():
    with server() as rig:
        os.chmod(os.path.dirname(os.path.dirname(rig.path)), 0o755)
        equal(os.stat(rig.path).st_mode & 0o777, 0o600, "mode")
        equal(connect_as_nobody(rig.path), 1, "by the mode")
        os.chmod(rig.path, 0o666)
        equal(connect_as_nobody(rig.path), 0, "closed")
        equal(rig.counter("refused"), 1)
        assert "peer with uid 65534" in rig.said(), rig.said()


@test
def more_than_five_a_second_wait():
    with server(max_accepts=5) as rig:
        start = time.monotonic()
        peers = [rig.peer() for _ in range(7)]
        for i, peer in enumerate(peers):
            peer.expect(SNAPSHOT_SENT)
            took = time.monotonic() - start
            assert i < 5 or took >= 0.9, f"number {i + 1} after {took:.3f} s"
            peer.ack()
            rig.ready(i + 1)
        for peer in peers:
            peer.close()
        for _ in peers:
            rig.expect("peers")
        rig.sync()
        wait_for(lambda: time.monotonic() - start > 2.1, "the next second")


@test
def more_than_the_most_are_closed():
    with server(max_peers=3) as rig:
        peers = [rig.peer(hello=False) for _ in range(3)]
        for _ in range(3):
            with rig.peer(hello=False) as peer:
                peer.closed()
        equal(rig.counter("refused"), 3)
        peers[0].close()
        wait_for(lambda: len(rig.status()["connections"]) == 2, "one has left")
        with rig.joined():
            pass
        rig.ready(0)
        for peer in peers:
            peer.close()


@test
def a_storm_of_connections_leaves_nothing():
    with server() as rig:
        for i in range(20):
            rig.know(f"uid-{i}")
        before = rig.fds()
        for i in range(STORM):
            greets = i % 5 != 0
            with contextlib.suppress(Closed, OSError), rig.peer(hello=greets) as peer:
                for _ in range(i % 7 if greets else 0):
                    peer.receive()
                    (peer.ack if i % 3 else lambda p=peer: p.nack("no"))()
                if i % 11 == 0:
                    peer.send(b"\xff")
        wait_for(lambda: rig.status()["connections"] == [], "the end of the storm")
        equal(rig.counter("accepted"), STORM)
        equal(rig.fds(), before, "descriptors of the rig")
        with rig.peer() as peer:
            equal(len(peer.snapshot()), 20)
        for i in range(20):
            rig.remove(f"uid-{i}")
        while rig.event().get("id") != "-uid-19":
            pass


# ---- the socket ---------------------------------------------------------------------------------


def refused_rig(path, part):
    done = subprocess.run([RIG, json.dumps({"path": path})], input="",
                          capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    equal(done.returncode, 1, "exit status")
    assert part in done.stderr, done.stderr


@test
def a_socket_that_is_in_use_is_left_alone():
    with server() as rig:
        refused_rig(rig.path, "somebody listens on")
        with rig.joined():
            pass
        rig.ready(0)


@test
def a_dead_agents_socket_is_replaced_and_nothing_else():
    with directory() as path:
        rig = Rig(path)
        rig.kill()
        assert os.path.exists(rig.path), "the dead one's socket is gone"
        rig = Rig(path)
        with rig.joined():
            pass
        rig.close()
        rig.kill()
        with open(rig.path, "w", encoding="ascii"):
            pass
        refused_rig(rig.path, "is no socket")
        os.unlink(rig.path)
        os.chmod(os.path.dirname(rig.path), 0o777)
        refused_rig(rig.path, "others may write")
        refused_rig(os.path.join(path, "none", "below", "ztunnel.sock"), "make directory")
        refused_rig("/" + "x" * 110, "socket path")


@test
def the_socket_of_a_successor_is_not_removed():
    with directory() as path:
        first = Rig(path)
        os.rename(first.path, first.path + ".old")
        second = Rig(path)
        first.tell(op="close")
        equal(first.process.wait(DEADLINE_S), 0)
        with second.joined():
            pass
        second.close()
        first.kill()
        second.kill()


@test
def when_it_ends_everybody_is_told():
    with directory() as path:
        rig = Rig(path)
        peer = rig.joined()
        rig.put("uid-1")
        rig.put("uid-2")
        rig.remove("uid-3")
        peer.expect(add_bytes("uid-1"))
        rig.tell(op="close")
        events = [rig.event() for _ in range(4)]
        equal(sorted(event.get("id", "") for event in events[:3]), ["-uid-3", "uid-1", "uid-2"])
        equal({event.get("result") for event in events[:3]}, {"lost"})
        equal(events[3], {"event": "closed"})
        peer.closed()
        peer.close()
        equal(rig.process.wait(DEADLINE_S), 0, "exit status")
        rig.kill()


# ---- what is never sent -------------------------------------------------------------------------


@test
def what_would_end_ztunnel_is_refused_and_named():
    with server() as rig:
        with rig.joined() as peer:
            for bad in ({"uid": ""}, {"uid": "u" * 129}, {"uid": "uid-1", "name": ""},
                        {"uid": "uid-1", "namespace": ""}, {"uid": "uid-1", "serviceAccount": ""},
                        {"uid": "uid-1", "name": "caf\u00e9"}, {"uid": "uid 1"},
                        {"uid": "uid-1", "name": "long", "serviceAccount": "s" * 1000}):
                rig.tell(op="put", **bad)
                text = rig.expect("error")["text"]
                assert bad.get("name", "pod") in text or "uid" in bad, text
            assert "limit is 1024" in text and "long" in text, text
            rig.tell(op="put", uid="uid-1", netns="/dev/null")
            rig.expect("error")
            rig.tell(op="remove", uid="")
            rig.expect("error")
            peer.nothing()
            # The longest that Kubernetes can name fits.
            names = {"name": "n" * 253, "namespace": "s" * 63, "serviceAccount": "a" * 253}
            rig.put("u" * 128, **names)
            peer.expect(add_bytes("u" * 128, names["name"], names["namespace"],
                                  names["serviceAccount"]))
            peer.ack()
            rig.done("u" * 128, "acked")
            rig.remove("u" * 128)
            peer.expect(del_bytes("u" * 128))
            peer.ack()
            rig.done("-" + "u" * 128, "acked")
        rig.ready(0)


@test
def more_pods_than_the_most_are_refused():
    with server(max_pods=2) as rig:
        for uid in "uid-1", "uid-2":
            rig.put(uid)
            rig.done(uid, "no-proxy")
        rig.put("uid-3")
        assert "there are 2 pods" in rig.expect("error")["text"]
        rig.put("uid-2")
        rig.done("uid-2", "no-proxy")
        for uid in "uid-1", "uid-2":
            rig.remove(uid)
            rig.done(f"-{uid}", "no-proxy")


def main():
    wanted = [fn for fn in TESTS
              if not sys.argv[1:] or any(part in fn.__name__ for part in sys.argv[1:])]
    failed = 0
    for number, fn in enumerate(wanted, 1):
        claim = fn.__name__.replace("_", " ")
        try:
            fn()
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {claim}")
            print("".join("# " + line for line in traceback.format_exc().splitlines(True)))
        else:
            print(f"ok {number} - {claim}")
        sys.stdout.flush()
    print(f"1..{len(wanted)}")
    sys.exit(1 if failed else 0)


main()
