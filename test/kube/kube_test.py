# SPDX-License-Identifier: Apache-2.0
"""kube_test.py DIR [PART-OF-A-CLAIM]: tests of the watch rig against a faulty API server, as TAP."""
import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faulty_apiserver import FaultyApiserver  # noqa: E402

DIR = sys.argv[1]
RIG = os.environ["RIG"]
PATIENCE = 20 * float(os.environ.get("SOCKMESH_TEST_PATIENCE", "1"))
SANITIZED = "sanitize" in RIG
PODS = "/api/v1/pods"
TESTS = []


class Failed(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Failed(what)


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise Failed(f"did not happen in {PATIENCE} s: {what}")


def path(name):
    return os.path.join(DIR, name)


def read(name, mode="r"):
    with open(path(name), mode) as f:
        return f.read()


def write(name, text):
    with open(path(name) + ".new", "w") as f:
        f.write(text)
    os.rename(path(name) + ".new", path(name))


class Rig:
    """A running watch_rig and the lines it has said."""

    def __init__(self, server, *options, config=None, command=(), env=None, wait=True, warns=False):
        self.warns = warns
        config = config if config is not None else ["--kubeconfig", kubeconfig(server)]
        self.lines, self.news = [], threading.Condition()
        self.process = subprocess.Popen(
            [*command, RIG, *config, "--backoff-base", "40", "--backoff-max", "200", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(env or {})})
        threading.Thread(target=self.listen, daemon=True).start()
        if wait:
            self.line(r"state watching")

    def listen(self):
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line.rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.lines.append("(end)")
            self.news.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.tell("quit")
        try:
            status = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = "does not end"
        errors = self.process.stderr.read()
        if kind is None:
            check(status == 0 and bool(errors) == self.warns, f"the rig ended with {status}: {errors}")
        else:
            print("\n".join(f"# rig: {line[:200]}" for line in self.lines[-30:]))
            print("\n".join(f"# rig: {line}" for line in errors.splitlines()))

    def mark(self):
        return len(self.lines)

    def line(self, pattern, since=0):
        """The match of the first line since `since`, which may come yet."""
        end = time.monotonic() + PATIENCE
        with self.news:
            while True:
                while since < len(self.lines):
                    match = re.match(pattern + "$", self.lines[since])
                    if match:
                        return match
                    since += 1
                left = end - time.monotonic()
                if left <= 0 or "(end)" in self.lines:
                    raise Failed(f"no line {pattern!r}")
                self.news.wait(left)

    def said(self, pattern, since=0):
        return [line for line in self.lines[since:] if re.match(pattern + "$", line)]

    def tell(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command, pattern):
        since = self.mark()
        self.tell(command)
        return self.line(pattern, since)

    def dump(self):
        since = self.mark()
        self.tell("dump")
        self.line("dump end .*", since)
        return dict(line.split()[1:] for line in self.said("dump (?!end )[^ ]+ [0-9]+", since))

    def status(self):
        return json.loads(self.ask("status", "status (.*)")[1])

    def fds(self):
        return int(self.ask("fds", r"fds (\d+)")[1])

    def high_kb(self):
        return int(self.ask("memory", r"memory (\d+) .*")[1])

    def stall_ms(self):
        """For how long the loop was held up, and what of that it computed."""
        return int(self.ask("stall", r"stall (\d+)")[1]), int(self.ask("work", r"work (\d+)")[1])

    def send(self, request):
        match = self.ask(f"send {request}", r"response (\d+) (-?\d+) (.*?)( \| .*)?")
        return int(match[1]), int(match[2]), match[3], (match[4] or "")[3:]

    def converges(self, server, kind="pods"):
        wait_for(lambda: self.dump() == server.held(kind), "the rig holds what the server holds")


def kubeconfig(server, name="config", cluster=None, user=None, url=None):
    write(name, json.dumps({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {
            "server": url or f"https://127.0.0.1:{server.port}",
            **({"certificate-authority": "ca.crt"} if cluster is None else cluster)}}],
        "users": [{"name": "u", "user": {"token": "token-1"} if user is None else user}]}))
    return path(name)


def new_server(certificate="server", pods=3, **options):
    server = FaultyApiserver(path(certificate + ".crt"), path(certificate + ".key"), **options)
    for i in range(pods):
        server.put("pods", f"web-{i}", "shop", status={"phase": "Running"})
    return server


def test(claim):
    def register(function):
        TESTS.append((claim, function))
        return function
    return register


# ---- the right way --------------------------------------------------------------------------------

@test("what the server holds is listed, and what changes then is watched")
def _():
    server = new_server()
    with Rig(server, "--field-selector", "spec.nodeName=node-1", "--label-selector", "a in (b, c)") as rig:
        check(len(rig.said("seen shop/web-. .*")) == 3, "three pods")
        server.put("pods", "new", "shop")
        server.put("pods", "web-0", "shop", status={"phase": "Failed"})
        server.delete("pods", "web-1", "shop")
        rig.line("deleted shop/web-1 .*")
        rig.converges(server)
        query = server.requests("list")[0].query
        check(query == {"resourceVersion": "0", "fieldSelector": "spec.nodeName=node-1",
                        "labelSelector": "a in (b, c)"}, query)
        query = server.requests("watch")[0].query
        check(300 <= int(query.pop("timeoutSeconds")) <= 600, "the time of a watch")
        check(query == {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "1003",
                        "fieldSelector": "spec.nodeName=node-1", "labelSelector": "a in (b, c)"}, query)
        check(server.seen[0].headers["user-agent"].startswith("sockmesh-agent/"), "user agent")
        check("accept-encoding" not in server.seen[0].headers, "nothing compressed")


@test("a watch that the server ends is resumed without a list")
def _():
    server = new_server()
    with Rig(server, "--watch-s", "1") as rig:
        wait_for(lambda: len(server.requests("watch")) >= 2, "a second watch")
        server.put("pods", "later", "shop")
        rig.converges(server)
        check(len(server.requests("list")) == 1, "one list")
        check(not rig.said("state waiting.*"), "no back-off")


@test("bookmarks alone move the version from which a watch resumes")
def _():
    server = new_server()
    server.bookmark_s = 0.05
    with Rig(server) as rig:
        server.put("namespaces", "elsewhere")
        wait_for(lambda: rig.status()["watch"]["resourceVersion"] == str(server.version), "a bookmark")
        server.stop()
        since = rig.mark()
        rig.line("state waiting.*", since)
        server.start()
        rig.line("state watching", since)
        wait_for(lambda: len(server.requests("watch")) >= 2, "a second watch")
        check(server.requests("watch")[-1].query["resourceVersion"] == str(server.version), "from the bookmark")
        check(len(server.requests("list")) == 1, "one list")


@test("1,700 pods come in pages of 500 after the server forgot the version")
def _():
    server = new_server(pods=1700)
    server.fault("watch", lambda e: e.status(410, "too old"))
    with Rig(server, wait=False) as rig:
        wait_for(lambda: len(rig.said("end 1700 .*")) == 2, "a second list")
        rig.converges(server)
        queries = [(e.query.get("limit"), e.query.get("continue"), e.query.get("resourceVersion"))
                   for e in server.requests("list")]
        version = server.version
        check(queries == [(None, None, "0"), ("500", None, None), ("500", f"{version}:500", None),
                          ("500", f"{version}:1000", None), ("500", f"{version}:1500", None)], queries)


# ---- gone -----------------------------------------------------------------------------------------

def error_event(code):
    def fault(e):
        e.head()
        e.part({"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "because"}})
        e.end()
    return fault


def gone_while_away(fault):
    server = new_server()
    with Rig(server) as rig:
        since = rig.mark()
        server.stop()
        rig.line("state waiting.*", since)
        server.delete("pods", "web-0", "shop")
        server.put("pods", "new", "shop")
        server.compact()
        fault(server)
        server.start()
        rig.line("gone shop/web-0", since)
        rig.line("state watching", since)
        rig.converges(server)
        check("limit" in server.requests("list")[-1].query, "a consistent list")
        server.put("pods", "newer", "shop")
        rig.converges(server)


@test("410 to a watch: what was deleted meanwhile is gone")
def _():
    gone_while_away(lambda server: None)


@test("410 as an event: what was deleted meanwhile is gone")
def _():
    gone_while_away(lambda server: server.fault("watch", error_event(410)))


@test("410 in the midst of pages: the list begins anew")
def _():
    def pages(server):
        for i in range(1200):
            server.put("pods", f"page-{i}", "shop")
        server.compact()
        server.fault("list", server_page, 1)

    def server_page(e):
        # The first page is right; then everything is compacted.
        e.server.right(e)
        e.server.put("pods", "last", "shop")
        e.server.compact()
    gone_while_away(pages)


@test("410 for ever: lists are apart")
def _():
    server = new_server()
    server.fault("watch", lambda e: e.status(410), times=1000)
    with Rig(server, wait=False) as rig:
        wait_for(lambda: len(server.requests("list")) >= 8, "eight lists")
        at = [e.at for e in server.requests("list")[:8]]
        check(at[7] - at[0] > 7 * 0.005, "back-off")
        check(rig.status()["watch"]["failuresInARow"] >= 7, "failures")
        server.faults.clear()
        rig.converges(server)


# ---- refused --------------------------------------------------------------------------------------

for code in (403, 404, 500, 503):
    @test(f"{code} to lists and watches: tried again until it works, with the reason")
    def _(code=code):
        server = new_server()
        server.fault("list", lambda e: e.status(code, f"no list {code}"), times=3)
        server.fault("watch", lambda e: e.status(code, f"no watch {code}"), times=3)
        with Rig(server, wait=False) as rig:
            rig.line(f"state waiting: list objects: HTTP {code}: no list {code}")
            rig.line(f"state waiting: watch objects: HTTP {code}: no watch {code}")
            wait_for(lambda: len(server.requests("watch")) == 4, "the fourth watch")
            rig.converges(server)
            check(len(server.requests("list")) == 4, "three failed lists")
            check(rig.status()["client"]["statuses"][f"{code // 100}xx"] == 6, "counted")


@test("429: as long as Retry-After says, and not longer for a crazy one")
def _():
    server = new_server()
    server.fault("list", lambda e: e.status(429, more=["Retry-After: 1"]))
    server.fault("watch", lambda e: e.status(429, more=["Retry-After: nonsense"]))
    with Rig(server, wait=False) as rig:
        wait_for(lambda: len(server.requests("list")) == 2, "the second list")
        first, second = server.requests("list")
        check(second.at - first.at >= 0.99, f"after {second.at - first.at} s")
        wait_for(lambda: len(server.requests("watch")) == 2, "the second watch")
        rig.converges(server)


@test("401, and the token was rotated: the same request again, at once")
def _():
    server = new_server(tokens=["token-2"])
    write("token", "token-1\n")
    config = kubeconfig(server, user={"tokenFile": "token"})
    write("token", "token-1\n")
    with Rig(server, config=["--kubeconfig", config], wait=False) as rig:
        rig.line("state waiting: list objects: HTTP 401: Unauthorized")
        # Nothing new in the file: once for each try.
        status = rig.status()["client"]
        check(status["unauthorizedRetries"] == 0, status)
        write("token", "token-2\n")
        rig.line("state watching")
        rig.converges(server)
        server.tokens = {"token-3"}
        write("token", "token-3\n")
        check(rig.send("GET /version")[0] == 200, "an answer")
        check(rig.status()["client"]["unauthorizedRetries"] >= 1, "at once")
        check("token-" not in "\n".join(rig.lines).replace('"token":"token-3"', ""), "no token is told")


@test("401 whatever the token: no more than one try again, even if it rotates each time")
def _():
    server = new_server()
    write("token", "token-1")
    config = kubeconfig(server, user={"tokenFile": "token"})
    asked = []

    def fault(e):
        asked.append(e.token)
        write("token", f"never-{len(asked)}")
        e.status(401)
    with Rig(server, config=["--kubeconfig", config]) as rig:
        server.fault("other", fault, times=10)
        check(rig.send("GET /x")[0] == 401, "401")
        check(asked == ["token-1", "never-1"], asked)


@test("a token that rotates is used before the old one is refused")
def _():
    server = new_server(tokens=["token-1", "token-2"])
    write("token", "token-1")
    config = kubeconfig(server, user={"tokenFile": "token"})
    with Rig(server, config=["--kubeconfig", config]) as rig:
        check(json.loads(rig.send("GET /x")[2])["token"] == "token-1", "the first")
        write("token", "token-2")
        wait_for(lambda: json.loads(rig.send("GET /x")[2])["token"] == "token-2", "the second")
        check(rig.status()["client"]["unauthorizedRetries"] == 0, "without a 401")


# ---- nonsense -------------------------------------------------------------------------------------

def list_body(*items, version="5"):
    return {"kind": "PodList", "metadata": {"resourceVersion": version}, "items": list(items)}


NONSENSE = {
    "no JSON": lambda e: e.answer(b"\x00\xff\x13garbage" * 100),
    "HTML": lambda e: e.answer("<html>sign in</html>", kind="text/html"),
    "no content type": lambda e: e.answer("{}", kind=None),
    "a Status": lambda e: e.answer({"kind": "Status", "code": 200}),
    "items that are a string": lambda e: e.answer({"metadata": {"resourceVersion": "1"}, "items": "x"}),
    "items that are numbers": lambda e: e.answer(list_body(1, 2)),
    "metadata that is a list": lambda e: e.answer(list_body({"metadata": []})),
    "a version that is a number": lambda e: e.answer(list_body(version=5)),
    "a redirect": lambda e: e.answer("", status=302, more=["Location: https://127.0.0.1:1/"]),
    "an early end": lambda e: (e.head(length=1000), e.raw(b'{"items":[{"metadata":'), e.cut()),
    "an early end of chunks": lambda e: (e.head(), e.part(b'{"items":[{"metadata":'), e.cut()),
    "no HTTP": lambda e: (e.raw(b"\x00\x01\x02\r\n\r\n" * 100), e.cut()),
    "nothing": lambda e: e.cut(),
    "endless headers": lambda e: (e.raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100000), e.cut()),
    "other bytes than chunks": lambda e: (e.head(), e.raw(b"zz\r\nxx"), e.cut()),
}


@test("nonsense for a list leads to another list")
def _():
    server = new_server()
    for fault in NONSENSE.values():
        server.fault("list", fault)
    with Rig(server, wait=False) as rig:
        wait_for(lambda: len(server.requests("list")) == len(NONSENSE) + 1, "all of it")
        rig.line("end 3 .*")
        rig.converges(server)
        check(len(rig.said("end .*")) == 1, "none of it is a list")
        whys = rig.said("state waiting: list objects: .*")
        check(len(whys) == len(NONSENSE), whys)
        check(any("more than 65536 bytes of headers" in why for why in whys), whys)
        check(any("the answer is text/html, not JSON" in why for why in whys), whys)
        check(any("the answer is without a type, not JSON" in why for why in whys), whys)


WATCH_NONSENSE = {
    **{k: v for k, v in NONSENSE.items() if k not in ("an early end",)},
    "an event that is a list": lambda e: (e.head(), e.part(b"[]\n"), e.end()),
    "an event without a type": lambda e: (e.head(), e.part({"object": {}}), e.end()),
    "a type that is a number": lambda e: (e.head(), e.part({"type": 1, "object": {}}), e.end()),
    "an object that is a string": lambda e: (e.head(), e.part({"type": "ADDED", "object": "x"}), e.end()),
    "an object without metadata": lambda e: (e.head(), e.part({"type": "ADDED", "object": {}}), e.end()),
    "half an event": lambda e: (e.head(), e.part(b'{"type":"ADDED","object":{"meta'), e.cut()),
}


@test("nonsense for a watch leads to another watch from the same version")
def _():
    server = new_server()
    for fault in WATCH_NONSENSE.values():
        server.fault("watch", fault)
    with Rig(server, wait=False) as rig:
        wait_for(lambda: len(server.requests("watch")) == len(WATCH_NONSENSE) + 1, "all of it")
        versions = {e.query["resourceVersion"] for e in server.requests("watch")}
        check(versions == {"1003"}, versions)
        check(len(server.requests("list")) == 1, "one list")
        server.put("pods", "new", "shop")
        rig.converges(server)


@test("a watch that is cut in an event resumes behind the last whole one")
def _():
    server = new_server()

    def fault(e):
        e.head()
        version = server.put("pods", "whole", "shop")
        e.part(server.event("ADDED", server.objects["pods"]["shop/whole"]))
        server.put("pods", "half", "shop")
        text = json.dumps(server.event("ADDED", server.objects["pods"]["shop/half"])).encode()
        e.part(text[:len(text) // 2])
        e.server.cut_version = str(version)
        e.cut()
    server.fault("watch", fault)
    with Rig(server, wait=False) as rig:
        rig.line("changed shop/half .*")
        check(server.requests("watch")[1].query["resourceVersion"] == server.cut_version, "behind the whole one")
        check(len(rig.said("changed shop/whole .*")) == 1, "once")
        rig.converges(server)


@test("every object of a list that arrives byte by byte")
def _():
    server = new_server()

    def fault(e):
        body = json.dumps(list_body(*[item for _, item in sorted(server.objects["pods"].items())], version="1003"))
        e.head(length=len(body))
        for i in range(len(body)):
            e.raw(body[i:i + 1].encode())
    server.fault("list", fault)
    with Rig(server) as rig:
        rig.converges(server)


# ---- too much -------------------------------------------------------------------------------------

def endless(e, start, more, total):
    e.head()
    e.part(start)
    for _ in range(total // len(more)):
        e.part(more)
    e.cut()


POD = b'{"metadata":{"name":"big","namespace":"shop","uid":"u","resourceVersion":"7"},"spec":"'


@test("an object, a member and a list without an end use bounded memory")
def _():
    server = new_server()
    junk, total = b"x" * 65536, 200 << 20
    server.fault("list", lambda e: endless(e, b'{"items":[' + POD, junk, total))
    server.fault("list", lambda e: endless(e, b'{"metadata":{"a":"', junk, total))
    server.fault("list", lambda e: endless(e, b'{"items":[{"a":', b"[" * 65536, total))
    server.fault("list", lambda e: endless(e, b'{"items":[{}', b" " * 65536, 20 << 20))
    server.fault("watch", lambda e: endless(e, b'{"type":"ADDED","object":' + POD, junk, total))
    with Rig(server) as rig:
        rig.line("end 3 .*")
        wait_for(lambda: len(server.requests("watch")) >= 2, "the second watch")
        rig.converges(server)
        high = rig.high_kb()
        print(f"# high water {high} kB")
        check(SANITIZED or high < 48 << 10, f"{high} kB")


@test("an object that is too large is unreadable, there, and does not hide the others")
def _():
    server = new_server()
    server.put("pods", "big", "shop", spec="x" * 200000)
    server.put("pods", "behind", "shop")
    with Rig(server, "--object-max", "65536") as rig:
        rig.line("seen shop/big [0-9]+ unreadable: larger than 65536 bytes")
        rig.converges(server)
        server.put("pods", "big", "shop", spec="y" * 200000)
        rig.line("changed shop/big [0-9]+ unreadable: .*")
        server.put("pods", "big", "shop", spec="small")
        rig.line("changed shop/big [0-9]+")
        server.put("pods", "big", "shop", spec={"a\0b": 1})
        rig.line("changed shop/big [0-9]+ unreadable: .*NUL.*")
        rig.converges(server)
        check(rig.status()["watch"]["unreadable"] == 3, "counted")


@test("an object of 9 MiB, as 1.5 MiB in etcd can become, is readable")
def _():
    server = new_server(pods=1)
    server.put("pods", "html", "shop", spec="\x01" * (3 << 19))
    with Rig(server) as rig:
        rig.line("seen shop/html [0-9]+")
        high = rig.high_kb()
        print(f"# high water {high} kB")
        check(SANITIZED or high < 64 << 10, f"{high} kB")


# ---- silence --------------------------------------------------------------------------------------

@test("a server that accepts and says nothing: each limit ends it")
def _():
    server = new_server()
    server.fault("list", lambda e: e.hang())
    server.fault("list", lambda e: (e.head(), e.part(b'{"items":['), e.hang()))
    server.fault("watch", lambda e: e.hang())
    server.fault("watch", lambda e: (e.head(), e.part(server.bookmark()), e.hang()))
    with Rig(server, "--list-silence-ms", "400", "--watch-silence-ms", "400", wait=False) as rig:
        wait_for(lambda: len(server.requests("watch")) >= 3, "the third watch")
        check(len(rig.said("state waiting: list objects: .*nothing heard for 400 ms")) >= 2, "two lists")
        check(len(rig.said("state waiting: watch objects: .*nothing heard for 400 ms")) >= 2, "two watches")
        check(len(rig.said("end 3 .*")) == 1, "one list")


@test("a list that trickles for ever ends by its deadline")
def _():
    server = new_server()

    def trickle(e):
        e.head()
        e.part(b'{"items":[')
        while not server.stopping.wait(0.01):
            e.part(b" ")
    server.fault("list", trickle)
    with Rig(server, "--list-ms", "500", wait=False) as rig:
        rig.line("state waiting: list objects: .*imed out.*")
        rig.line("state watching")
        rig.converges(server)


@test("a server that does not even answer TLS holds up nobody")
def _():
    mute = socket.create_server(("127.0.0.1", 0))
    config = kubeconfig(None, url=f"https://127.0.0.1:{mute.getsockname()[1]}")
    with Rig(None, "--deadline-ms", "300", config=["--kubeconfig", config], wait=False) as rig:
        status, _, _, error = rig.send("GET /x")
        check(status == 0 and "imed out" in error, error)
        check(rig.stall_ms()[0] < 2000, "the loop went on")
    mute.close()


def mutes(port):
    """Two servers that say nothing: one takes connections, one has the kernel drop what asks for one."""
    with socket.create_server(("127.0.0.1", port)) as deaf:
        deaf.settimeout(PATIENCE)
        with deaf.accept()[0]:
            yield "taken"
    full = socket.create_server(("127.0.0.1", port), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    yield "dropped"
    for open_ in (*fillers, full):
        open_.close()


@test("a server that is asked and does not answer is not watched, until it answers")
def _():
    server = new_server()
    with Rig(server) as rig:
        server.stop()
        rig.line("state waiting.*")
        for what in mutes(server.port):
            since = rig.mark()
            said = wait_for(lambda: [s for s in [rig.status()] if s["client"]["underWay"]], "it is asked")[0]
            check(said["watch"]["state"] == "waiting", f"connections are {what}: {said['watch']}")
            check(not rig.said("state (watching|listing)", since), "nothing else was said")
        since = rig.mark()
        server.start()
        rig.line("state watching", since)
        server.put("pods", "new", "shop")
        rig.converges(server)


@test("refused connections are tried again, and none of it stops the loop")
def _():
    server = new_server()
    server.stop()
    with Rig(server, wait=False) as rig:
        rig.line("state waiting: list objects: .*onnect.*")
        wait_for(lambda: len(rig.said("state waiting.*")) >= 4, "four tries")
        server.start()
        rig.line("state watching")
        rig.converges(server)


@test("a server that restarts is resumed, not listed")
def _():
    server = new_server()
    with Rig(server) as rig:
        for round_ in range(5):
            since = rig.mark()
            server.stop()
            server.put("pods", f"round-{round_}", "shop")
            rig.line("state waiting.*", since)
            server.start()
            rig.line(f"changed shop/round-{round_} .*", since)
        rig.converges(server)
        check(len(server.requests("list")) == 1, "one list")


@test("a name that is never resolved does not hold up the loop, nor the end")
def _():
    write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:5 attempts:4\n")
    # A server of names that listens and never answers, as long as what started it lives.
    write("mute-dns.py", """
import os, socket, time
parent = os.getppid()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 53))
print("up", flush=True)
os.close(1)
while os.getppid() == parent:
    time.sleep(0.02)
""")
    write("in-netns.sh", """
ip link set lo up
mount --bind "$1/resolv.conf" /etc/resolv.conf
rm -f "$1/up"
mkfifo "$1/up"
python3 -EsB "$1/mute-dns.py" </dev/null >"$1/up" &
read -r up <"$1/up"
shift
exec "$@"
""")
    config = kubeconfig(None, url="https://api.example.test:6443")
    with Rig(None, "--deadline-ms", "300", config=["--kubeconfig", config], wait=False,
             command=["unshare", "-mn", "bash", path("in-netns.sh"), DIR]) as rig:
        rig.line("begin")
        status, _, _, error = rig.send("GET /x")
        check(status == 0 and "esolving timed out" in error, error)
        rig.ask("drop GET /x", "dropped")
        check(rig.stall_ms()[0] < 2000, "the loop went on")
        at = time.monotonic()
        rig.tell("quit")
        rig.process.wait(10)
        check(time.monotonic() - at < 8, "ended without waiting for the name")


@test("a wall clock that jumps by a day, ahead and back, changes nothing")
def _():
    server = new_server()
    server.bookmark_s = 0.05
    server.fault("list", lambda e: e.status(429, more=["Retry-After: 1"]))
    server.fault("other", lambda e: e.hang())
    preload = {"LD_PRELOAD": path("clock_jump.so"), "ASAN_OPTIONS": "verify_asan_link_order=0"}
    with Rig(server, "--watch-silence-ms", "3000", "--deadline-ms", "300", env=preload) as rig:
        first, second = server.requests("list")
        check(0.99 <= second.at - first.at < 5, f"Retry-After: {second.at - first.at} s")
        at = time.monotonic()
        check("imed out" in rig.send("GET /x")[3], "a deadline")
        check(0.25 < time.monotonic() - at < 5, "of 300 ms")
        since = rig.mark()
        wait_for(lambda: rig.status()["watch"]["bookmarks"] >= 30, "30 bookmarks, in 1.5 s")
        check(not rig.said("state.*", since), "the same watch")
        server.put("pods", "new", "shop")
        rig.converges(server)


# ---- requests -------------------------------------------------------------------------------------

@test("a request carries method, body and type, and its answer comes back")
def _():
    server = new_server()
    with Rig(server) as rig:
        status, retry, body, error = rig.send('PATCH /api/v1/namespaces/a/pods/b/status?x=y {"a":1}')
        answer = json.loads(body)
        check((status, retry, error) == (200, -1, ""), error)
        check(answer["method"] == "PATCH" and answer["path"] == "/api/v1/namespaces/a/pods/b/status", answer)
        check(answer["query"] == {"x": "y"} and answer["body"] == '{"a":1}', answer)
        check(answer["type"] == "application/merge-patch+json", answer)
        server.fault("other", lambda e: e.status(409, "conflict", more=["Retry-After: 7"]))
        status, retry, body, error = rig.send("PATCH /x {}")
        check((status, retry, error) == (409, 7000, "") and "conflict" in body, body)
        server.fault("other", lambda e: e.answer("", status=307, more=["Location: /elsewhere"]))
        check(rig.send("GET /x")[0] == 307, "no redirect is followed")
        server.fault("other", lambda e: e.answer('"' + "x" * (1 << 20) + '"'))
        status, _, _, error = rig.send("GET /x")
        check(status == 200 and "more than 1048576 bytes" in error, error)
        server.fault("other", lambda e: (e.head(length=100), e.raw(b"{"), e.cut()))
        status, _, body, error = rig.send("GET /x")
        check(status == 200 and error, "a cut answer is a failure")
        check(rig.send("GET /x")[0] == 200, "and the next one is not")


@test("a request has a deadline, and a dropped one is heard of no more")
def _():
    server = new_server()
    server.fault("other", lambda e: e.hang())
    with Rig(server, "--deadline-ms", "300") as rig:
        at = time.monotonic()
        status, _, _, error = rig.send("GET /x")
        took = time.monotonic() - at
        check(status == 0 and "imed out" in error and 0.25 < took < 5, f"{error} {took}")
        since = rig.mark()
        rig.ask("drop GET /x", "dropped")
        check(rig.send("GET /y")[0] == 200, "the next one")
        check(len(rig.said("response.*", since)) == 1, "one answer")
        check(rig.status()["client"]["cancelled"] == 1, "counted")


@test("requests in flight are limited")
def _():
    server = new_server()
    server.fault("other", lambda e: e.hang(), times=100)
    with Rig(server) as rig:
        for _ in range(70):
            rig.tell("send GET /x")
        rig.line("refused 64 requests are under way")
        check(rig.status()["client"]["underWay"] == 64, "and no more")
        rig.tell("quit")
        rig.line(r".*the agent stops")
        rig.process.wait(10)
        check(len(rig.said(".*the agent stops")) == 63, "each one is told")


# ---- who is who -----------------------------------------------------------------------------------

def refused(server, cluster, why, url=None, user=None):
    config = kubeconfig(server, cluster=cluster, url=url, user=user)
    before = len(server.seen)
    with Rig(server, config=["--kubeconfig", config], wait=False) as rig:
        rig.line("state waiting: list objects: .*" + why + ".*")
    check(len(server.seen) == before, "nothing was asked, and no token sent")


@test("a server whose certificate is not ours, or another's, is refused")
def _():
    refused(new_server(), {"certificate-authority": "stranger.crt"}, "certificate")
    refused(new_server(), {}, "certificate")  # the system's authorities
    named = new_server("named")
    refused(named, None, "127.0.0.1")
    config = kubeconfig(named, cluster={"certificate-authority": "ca.crt",
                                        "tls-server-name": "kubernetes.default.svc"})
    with Rig(named, config=["--kubeconfig", config]) as rig:
        rig.converges(named)
        check(named.seen[0].headers["host"] == f"127.0.0.1:{named.port}", "the server's own name is asked")
    refused(new_server(), {"certificate-authority": "ca.crt", "tls-server-name": "other"}, "other")
    config = kubeconfig(named, cluster={"insecure-skip-tls-verify": True})
    with Rig(named, config=["--kubeconfig", config]) as rig:
        rig.converges(named)


@test("with an authority of its own, the system's are not trusted")
def _():
    server = new_server()
    os.makedirs(path("certs"), exist_ok=True)
    write("certs/ca.pem", read("ca.crt"))
    write("certs/ca-certificates.crt", read("ca.crt"))
    subprocess.run(["openssl", "rehash", path("certs")], check=True, capture_output=True)
    inside = ["unshare", "-m", "bash", "-c", 'mount --bind "$0" /etc/ssl/certs; exec "$@"', path("certs")]
    config = kubeconfig(server, cluster={"certificate-authority": "stranger.crt"})
    with Rig(server, config=["--kubeconfig", config], command=inside, wait=False) as rig:
        rig.line("state waiting: list objects: .*certificate.*")
    check(not server.seen, "nothing was asked")
    # It does work where no authority is named.
    config = kubeconfig(server, cluster={})
    with Rig(server, config=["--kubeconfig", config], command=inside) as rig:
        rig.converges(server)


@test("client certificates, from files that change and from the kubeconfig")
def _():
    server = new_server(client_ca=path("ca.crt"))
    for what in ("crt", "key"):
        write(f"me.{what}", read(f"alice.{what}"))
    user = {"client-certificate": "me.crt", "client-key": "me.key", "token": "token-1"}
    config = kubeconfig(server, user=user)
    with Rig(server, config=["--kubeconfig", config]) as rig:
        rig.converges(server)
        check(set(server.subjects) == {"alice"}, server.subjects)
        write("me.crt", read("bob.crt"))
        write("me.key", read("bob.key"))
        wait_for(lambda: rig.send("GET /x")[0] == 200 and "bob" in server.subjects, "the new certificate")

    def data(name):
        return base64.b64encode(read(name, "rb")).decode()
    user = {"client-certificate-data": data("alice.crt"), "client-key-data": data("alice.key"), "token": "token-1"}
    config = kubeconfig(server, user=user, cluster={"certificate-authority-data": data("ca.crt")})
    server.subjects.clear()
    with Rig(server, config=["--kubeconfig", config]) as rig:
        rig.converges(server)
        check(set(server.subjects) == {"alice"}, server.subjects)
    refused(server, None, "", user={"token": "token-1"})


@test("a service account, and nothing of the environment")
def _():
    server = new_server()
    os.makedirs(path("account"), exist_ok=True)
    write("account/ca.crt", read("ca.crt"))
    write("account/token", "token-1")
    environment = {name: "http://127.0.0.1:1" for name in
                   ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")}
    with Rig(server, config=["--service-account", path("account"), "--host", "127.0.0.1",
                             "--port", str(server.port)], env=environment) as rig:
        rig.converges(server)


@test("a proxy that the kubeconfig names is used, and learns no token")
def _():
    server = new_server()
    heard = []

    def proxy():
        while True:
            client, _ = listener.accept()
            heard.append(client.recv(65536))
            upstream = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for a, b in ((client, upstream), (upstream, client)):
                threading.Thread(target=pump, args=(a, b), daemon=True).start()

    def pump(a, b):
        try:
            while (data := a.recv(65536)):
                b.sendall(data)
        except OSError:
            pass
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=proxy, daemon=True).start()
    config = kubeconfig(server, cluster={"certificate-authority": "ca.crt",
                                         "proxy-url": f"http://127.0.0.1:{listener.getsockname()[1]}"})
    with Rig(server, config=["--kubeconfig", config], env={"no_proxy": "*", "NO_PROXY": "*"}) as rig:
        rig.converges(server)
        check(heard and heard[0].startswith(b"CONNECT 127.0.0.1:"), heard)
        check(all(b"token" not in h and b"Authorization" not in h for h in heard), heard)


# ---- how much -------------------------------------------------------------------------------------

@test("5,000 namespaces: memory, time, and a loop that goes on")
def _():
    server = new_server(pods=0)
    for i in range(5000):
        server.put("namespaces", f"namespace-{i}", spec={"finalizers": ["kubernetes"]}, metadata={
            "labels": {"kubernetes.io/metadata.name": f"namespace-{i}", "team": f"team-{i % 50}"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType":
                               "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:team": {}}}}}]})
    with Rig(server, "--path", "/api/v1/namespaces", "--quiet") as rig:
        before = rig.line(r"end 5000 cpu_ms (\d+) wall_ms (\d+)")
        (held_up, stall), high = rig.stall_ms(), rig.high_kb()
        print(f"# 5,000 namespaces: {before[1]} ms of CPU, {before[2]} ms; the loop was held up {held_up} ms, "
              f"{stall} ms of them by itself; "
              f"high water {high} kB with the rig's own table of names")
        wait_for(lambda: rig.dump() == server.held("namespaces"), "all of them")
        check(rig.status()["client"]["pauses"] > 0, "handed on in slices")
        check(SANITIZED or (stall < 25 and high < 24 << 10), f"stall {stall} ms, {high} kB")


@test("5,000 changes are watched in order, by a loop that goes on")
def _():
    server = new_server(pods=10)
    with Rig(server, "--quiet") as rig:
        rig.stall_ms()
        for i in range(5000):
            server.put("pods", f"web-{i % 10}", "shop", number=i)
        rig.converges(server)
        held_up, stall = rig.stall_ms()
        print(f"# the loop was held up {held_up} ms, {stall} ms of them by itself")
        check(rig.status()["watch"]["events"] == 5000, "each one")
        check(SANITIZED or stall < 50, f"stall {stall} ms")


@test("no descriptor is left by a hundred watches and as many failures")
def _():
    server = new_server()
    with Rig(server) as rig:
        check(rig.send("GET /x")[0] == 200, "an idle connection for all that follow")
        before = rig.fds()
        for round_ in range(100):
            since = rig.mark()
            if round_ % 4 == 0:
                server.fault("list", list(NONSENSE.values())[round_ // 4 % len(NONSENSE)])
            if round_ % 4 == 1:
                server.fault("watch", lambda e: e.cut())
            rig.tell("again")
            if round_ % 4 == 2:
                rig.ask("drop GET /x", "dropped")
            else:
                rig.line("state watching", since)
        rig.line("state watching", since)
        rig.converges(server)
        # Idle connections are kept, eight at most, and the one of a watch.
        wait_for(lambda: rig.fds() <= before + 8, "as few as before")


# ---- what is written ------------------------------------------------------------------------------

class Writes:
    """What a server is asked to write, and per pod what becomes of its next patches."""

    def __init__(self, server):
        self.server = server
        self.faults = {}
        server.fault("other", self.one, times=1 << 30)

    def one(self, exchange):
        left = self.faults.get(exchange.path.removesuffix("/status").rsplit("/", 1)[1], [])
        (left.pop(0) if left else lambda e: FaultyApiserver.right(self.server, e))(exchange)

    def of(self, name):
        with self.server.lock:
            return [e for e in self.server.seen if e.path.removesuffix("/status").endswith("/" + name)]

    def annotations(self, name):
        return [json.loads(e.body)["metadata"]["annotations"] for e in self.of(name)]

    def settle(self, rig, **wanted):
        """The counters become as they are wanted."""
        def now():
            written = json.loads(rig.ask("written", "written (.*)")[1])
            return {key: written[key] for key in wanted}
        try:
            wait_for(lambda: now() == wanted, "")
        except Failed:
            raise Failed(f"{now()} is not {wanted}") from None


def pod(name, **more):
    return json.dumps({"ns": "shop", "name": name, "uid": f"uid-{name}", **more})


@test("what is said of a pod is a patch of our annotations, under its uid")
def _():
    server = new_server()
    writes = Writes(server)
    with Rig(server) as rig:
        rig.tell("set " + pod("a", status="{1}", redirection="enabled"))
        rig.tell("set " + pod("b", status="{2}"))
        writes.settle(rig, written=2, failed=0, waiting=0)
        rig.tell("set " + pod("a", status="{1}", redirection="enabled"))
        rig.tell("set " + pod("b"))
        rig.tell("set " + pod("a"))  # what was set is taken away
        writes.settle(rig, written=4, failed=0, waiting=0)
        asked = writes.of("a")[0]
        check((asked.method, asked.path, asked.query, asked.headers["content-type"]) == (
            "PATCH", "/api/v1/namespaces/shop/pods/a/status", {"fieldManager": "sockmesh-agent"},
            "application/merge-patch+json"), vars(asked))
        check(json.loads(asked.body) == {"metadata": {"uid": "uid-a", "annotations": {
            "sockmesh.io/status": "{1}", "ambient.istio.io/redirection": "enabled"}}}, asked.body)
        check(writes.annotations("a")[1:] == [
            {"sockmesh.io/status": None, "ambient.istio.io/redirection": None}], "removed")
        check(writes.annotations("b") == [{"sockmesh.io/status": "{2}"}, {"sockmesh.io/status": None}],
              "another agent's annotation is none of its")


@test("of several values in a row the last one is written")
def _():
    server = new_server()
    writes, gate = Writes(server), threading.Event()
    writes.faults["a"] = [lambda e: (gate.wait(20), FaultyApiserver.right(server, e))]
    with Rig(server) as rig:
        for i in range(6):
            rig.tell("set " + pod("a", status=str(i)))
            wait_for(lambda: writes.of("a"), "the first one is sent")
        rig.tell("set " + pod("b", status="0"))
        writes.settle(rig, written=1, waiting=1)
        gate.set()
        writes.settle(rig, written=3, waiting=0)
        check([a["sockmesh.io/status"] for a in writes.annotations("a")] == ["0", "5"], "first and last")


def nonsense(e):
    e.raw(b"What?\r\n\r\n")
    e.cut()


BAD_ANSWERS = {
    "conflict": lambda e: e.status(409, "the object has been modified"),
    "busy": lambda e: e.status(429, "slowly", more=["Retry-After: 2"]),
    "broken": lambda e: e.status(500),
    "cut": lambda e: e.cut(),
    "half": lambda e: (e.head(length=100), e.raw(b"{"), e.cut()),
    "nonsense": nonsense,
}


@test("a status that cannot be written is tried again, each by itself, until the pod is gone")
def _():
    server = new_server()
    writes = Writes(server)
    for name, bad in BAD_ANSWERS.items():
        writes.faults[name] = [bad] * 2
    writes.faults["hanging"] = [lambda e: e.hang()]
    writes.faults["forbidden"] = [lambda e: e.status(403, "may not patch")]
    writes.faults["missing"] = [lambda e: e.status(404)]
    writes.faults["replaced"] = [lambda e: e.status(409, "Precondition failed: UID in precondition")] * 100
    names = [*BAD_ANSWERS, "hanging", "forbidden", "missing", "replaced", "robbed"]
    with Rig(server, warns=True) as rig:
        for name in names:
            rig.tell("set " + pod(name, status="1"))
        # It says it again, where somebody else has been at it: but not at once.
        wait_for(lambda: writes.of("robbed"), "written")
        rig.tell("set " + pod("robbed", status="1"))
        for name in BAD_ANSWERS:
            wait_for(lambda name=name: len(writes.of(name)) == 3, f"{name}: a third try")
        first, second, third = [e.at for e in writes.of("busy")]
        check(second - first >= 2 and third - second >= 2, "what Retry-After asks for")
        wait_for(lambda: len(writes.of("hanging")) == 2, "there is a deadline")
        rig.tell("set " + pod("robbed", status="1"))
        wait_for(lambda: len(writes.of("robbed")) == 2, "written again")
        rig.tell("set " + pod("forbidden", status="2"))
        check(len(writes.of("replaced")) > 3, "another pod of its name is not written to")
        rig.tell("forget uid-replaced")
        writes.settle(rig, written=len(BAD_ANSWERS) + 3, waiting=1, refused=1)
        replaced = len(writes.of("replaced"))
        rig.tell("set " + pod("last", status="1"))
        wait_for(lambda: writes.of("last"), "the next one")
        check(len(writes.of("forbidden")) == 1, "what is not allowed is not asked for all the time")
        check(len(writes.of("missing")) == 1, "what is not there is forgotten")
        check(len(writes.of("replaced")) == replaced, "so is what is gone")
        check(all(json.loads(e.body)["metadata"]["uid"] == "uid-replaced" for e in writes.of("replaced")), "uid")


@test("a page in another encoding for a status is told as far as it can be read")
def _():
    server = new_server()
    writes = Writes(server)
    writes.faults["a"] = [lambda e: e.answer("<p>gesperrt f\xfcr heute".encode("latin-1"), 502, "text/html")]
    with Rig(server, warns=True) as rig:
        rig.tell("set " + pod("a", status="1"))
        writes.settle(rig, written=1, failed=1, waiting=0, lastError="HTTP 502: <p>gesperrt f\ufffdr heute")


@test("a server that does not answer holds up eight patches, and no more of them are sent")
def _():
    server = new_server()
    writes, gate = Writes(server), threading.Event()
    for i in range(20):
        writes.faults[f"p{i}"] = [lambda e: (gate.wait(20), FaultyApiserver.right(server, e))]
    with Rig(server) as rig:
        for i in range(20):
            rig.tell("set " + pod(f"p{i}", status="1"))
        rig.tell("forget uid-p19")
        writes.settle(rig, waiting=19)
        wait_for(lambda: sum(len(writes.of(f"p{i}")) for i in range(20)) == 8, "eight")
        for i in range(8):
            rig.tell("set " + pod(f"p{i}", status="2"))
        writes.settle(rig, written=0, waiting=19)
        check(rig.status()["client"]["underWay"] == 9, "eight and the watch")
        gate.set()
        writes.settle(rig, written=27, waiting=0, failed=0)
        check(not writes.of("p19"), "what is forgotten is not sent")


@test("an Event is sent once, in its turn, and not for ever")
def _():
    server = new_server()
    writes, gate = Writes(server), threading.Event()
    writes.faults["events"] = [lambda e: (gate.wait(20), e.status(500))]
    with Rig(server, warns=True) as rig:
        for _ in range(3):
            for i in range(70):
                rig.tell("event " + pod("a", reason="SockmeshRefused", message=f"reason {i}"))
        wait_for(lambda: writes.of("events"), "the first one")
        gate.set()
        writes.settle(rig, events=64, eventsDropped=6, failed=0)
        bodies = [json.loads(e.body) for e in writes.of("events")]
        check([b["message"] for b in bodies] == [f"reason {i}" for i in range(65)], "each once, in order")
        event = bodies[0]
        check(writes.of("events")[0].path == "/api/v1/namespaces/shop/events", "where")
        check((event["involvedObject"]["uid"], event["type"], event["reason"], event["source"]) == (
            "uid-a", "Warning", "SockmeshRefused", {"component": "sockmesh-agent", "host": "node-1"}), event)


def broken_pod(name, version="7"):
    return json.dumps({
        "metadata": {"namespace": "shop", "name": name, "uid": f"uid-{name}", "resourceVersion": version,
                     "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"initContainers": [{"name": "istio-validation"}], "containers": [{"name": "istio-proxy"}]},
        "status": {"phase": "Pending", "initContainerStatuses": [{
            "name": "istio-validation", "state": {"waiting": {}},
            "lastState": {"terminated": {"exitCode": 126}}}]}})


@test("a broken pod is deleted or labelled once, exactly as it was seen")
def _():
    server = new_server()
    writes = Writes(server)
    writes.faults["a"] = [BAD_ANSWERS["conflict"], BAD_ANSWERS["broken"]]
    writes.faults["b"] = [lambda e: e.status(404)]
    with Rig(server, warns=True) as rig:
        for tries in range(1, 4):
            rig.tell("delete " + broken_pod("a", str(tries)))
            wait_for(lambda tries=tries: rig.ask("repaired", r"repaired (.*)")[1] ==
                     ("0 0 1", "0 0 2", "1 0 2")[tries - 1], f"try {tries}")
        rig.tell("delete " + broken_pod("a", "4"))
        rig.tell("delete " + broken_pod("b"))
        rig.tell("label " + broken_pod("c"))
        wait_for(lambda: rig.ask("repaired", r"repaired (.*)")[1] == "1 1 2" and writes.of("b"), "all of them")
        writes.settle(rig, events=2)
        check([e.method for e in writes.of("a")] == ["DELETE"] * 3, "not once more")
        check([json.loads(e.body)["preconditions"] for e in writes.of("a")] == [
            {"uid": "uid-a", "resourceVersion": str(i)} for i in (1, 2, 3)], "what must still be true")
        label = writes.of("c")[0]
        check((label.method, label.path, label.headers["content-type"]) == (
            "PATCH", "/api/v1/namespaces/shop/pods/c/status", "application/merge-patch+json"), vars(label))
        check(json.loads(label.body) == {"metadata": {
            "uid": "uid-c", "labels": {"cni.istio.io/uninitialized": "true"}}}, label.body)
        check(sorted(json.loads(e.body)["reason"] for e in writes.of("events")) == [
            "DeleteBrokenPod", "LabelBrokenPod"], "not of one that somebody else has deleted")


def main():
    failed = number = 0
    for claim, function in TESTS:
        if len(sys.argv) > 2 and sys.argv[2] not in claim:
            continue
        number += 1
        try:
            function()
            print(f"ok {number} - {claim}", flush=True)
        except Exception as e:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {claim}", flush=True)
            print(f"# {type(e).__name__}: {e}"[:2000].replace("\n", "\n# "), flush=True)
            if not isinstance(e, Failed):
                import traceback
                print("# " + traceback.format_exc().replace("\n", "\n# "), flush=True)
    print(f"1..{number}")
    sys.stdout.flush()
    os._exit(1 if failed or not number else 0)


main()
