# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server that holds pods and namespaces, lists and watches them over HTTPS, and
misbehaves as a test wants: a fault is a function that is given the exchange instead of it."""
import json
import socket
import ssl
import threading
import time
import urllib.parse


class Exchange:
    """One request, and the means to answer it rightly or wrongly."""

    def __init__(self, server, sock, method, target, headers, body):
        self.server, self.sock = server, sock
        self.method, self.target, self.headers, self.body = method, target, headers, body
        parts = urllib.parse.urlsplit(target)
        self.path = parts.path
        self.query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        self.watching = self.query.get("watch") == "true"
        self.token = headers.get("authorization", "").removeprefix("Bearer ")
        self.chunked = False
        self.keep = True

    def raw(self, data):
        self.sock.sendall(data)

    def head(self, status=200, kind="application/json", length=None, more=()):
        lines = [f"HTTP/1.1 {status} Whatever", *more]
        if kind:
            lines.append(f"Content-Type: {kind}")
        self.chunked = length is None
        lines.append("Transfer-Encoding: chunked" if self.chunked else f"Content-Length: {length}")
        self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    def part(self, data):
        if isinstance(data, dict):
            data = json.dumps(data, separators=(",", ":")).encode() + b"\n"
        if isinstance(data, str):
            data = data.encode()
        self.raw(b"%x\r\n%s\r\n" % (len(data), data) if self.chunked else data)

    def end(self):
        if self.chunked:
            self.raw(b"0\r\n\r\n")

    def answer(self, body, status=200, kind="application/json", more=()):
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body, separators=(",", ":"))
        if isinstance(body, str):
            body = body.encode()
        self.head(status, kind, len(body), more)
        self.raw(body)

    def status(self, code, message="because", more=(), **extra):
        self.answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                     "message": message, "code": code, **extra}, code, more=more)

    def cut(self):
        self.keep = False

    def hang(self):
        """Neither reads nor writes nor closes, until the server stops."""
        self.keep = False
        self.server.stopping.wait(60)


class FaultyApiserver:
    def __init__(self, certificate, key, tokens=("token-1",), client_ca=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        if client_ca:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(client_ca)
        self.tokens = set(tokens)
        self.lock = threading.Condition()
        self.objects = {"pods": {}, "namespaces": {}}
        self.history = []
        self.version = 1000
        self.oldest = 0  # watches and pages from before it: 410
        self.bookmark_s = None
        self.faults = []
        self.seen = []  # every request
        self.subjects = []  # of client certificates
        self.port = 0
        self.connections = set()
        self.start()

    # ---- the server as such

    def start(self):
        self.stopping = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False, backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.listener, self.stopping), daemon=True).start()

    def stop(self):
        self.stopping.set()
        # A blocked accept() would keep the port.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self.lock:
            left = list(self.connections)
            self.lock.notify_all()
        for sock in left:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept(self, listener, stopping):
        while not stopping.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with self.lock:
            self.connections.add(sock)
        try:
            tls = self.context.wrap_socket(sock, server_side=True)
            with self.lock:
                self.connections.discard(sock)
                self.connections.add(tls)
            sock = tls
            subject = tls.getpeercert() if self.context.verify_mode else None
            if subject:
                self.subjects.append(dict(pair[0] for pair in subject["subject"])["commonName"])
            stream = tls.makefile("rb")
            while self.one(tls, stream):
                pass
        except OSError:
            pass
        finally:
            with self.lock:
                self.connections.discard(sock)
            try:
                sock.close()
            except OSError:
                pass

    def one(self, sock, stream):
        line = stream.readline(65536).decode()
        if not line:
            return False
        method, target, _ = line.split(" ", 2)
        headers = {}
        while (line := stream.readline(65536).decode().strip()):
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        exchange = Exchange(self, sock, method, target, headers, body)
        with self.lock:
            exchange.at = time.monotonic()
            self.seen.append(exchange)
            fault = self.next_fault(exchange)
            self.lock.notify_all()
        (fault or FaultyApiserver.right)(*([exchange] if fault else [self, exchange]))
        return exchange.keep and not self.stopping.is_set()

    # ---- faults

    def fault(self, what, function, times=1):
        """what: "list", "watch" or "other"; function(exchange) answers `times` of these."""
        with self.lock:
            self.faults.append([what, function, times])

    def next_fault(self, exchange):
        what = "other" if exchange.path not in ("/api/v1/pods", "/api/v1/namespaces") else \
            "watch" if exchange.watching else "list"
        for fault in self.faults:
            if fault[0] == what:
                fault[2] -= 1
                if fault[2] == 0:
                    self.faults.remove(fault)
                return fault[1]
        return None

    def requests(self, what):
        with self.lock:
            return [e for e in self.seen if e.path.startswith("/api/v1/") and e.watching == (what == "watch")]

    # ---- what it holds

    def put(self, kind, name, ns=None, **extra):
        with self.lock:
            self.version += 1
            key = f"{ns}/{name}" if ns else name
            event = "MODIFIED" if key in self.objects[kind] else "ADDED"
            metadata = {"name": name, **({"namespace": ns} if ns else {}), "uid": f"uid-{key}",
                        "resourceVersion": str(self.version)}
            metadata.update(extra.pop("metadata", {}))
            item = {"metadata": metadata, **extra}
            self.objects[kind][key] = item
            self.history.append((self.version, kind, event, item))
            self.lock.notify_all()
            return self.version

    def delete(self, kind, name, ns=None):
        with self.lock:
            self.version += 1
            item = self.objects[kind].pop(f"{ns}/{name}" if ns else name)
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, kind, "DELETED", item))
            self.lock.notify_all()

    def compact(self):
        with self.lock:
            self.oldest = self.version
            self.history = []

    def held(self, kind):
        with self.lock:
            return {key: item["metadata"]["resourceVersion"] for key, item in self.objects[kind].items()}

    # ---- right answers

    def right(self, exchange):
        if exchange.token not in self.tokens:
            exchange.status(401, "Unauthorized")
        elif exchange.path in ("/api/v1/pods", "/api/v1/namespaces"):
            kind = exchange.path.rsplit("/", 1)[1]
            (self.watch if exchange.watching else self.list)(exchange, kind)
        else:
            exchange.answer({"method": exchange.method, "path": exchange.path, "query": exchange.query,
                             "body": exchange.body.decode(), "type": exchange.headers.get("content-type"),
                             "host": exchange.headers.get("host"), "token": exchange.token})

    def list(self, exchange, kind):
        limit = int(exchange.query.get("limit", 0))
        with self.lock:
            items = sorted(self.objects[kind].items())
            version, start = self.version, 0
            if "continue" in exchange.query:
                version, start = map(int, exchange.query["continue"].split(":"))
                if version < self.oldest:
                    exchange.status(410, "The provided continue parameter is too old", reason="Expired")
                    return
            page = items[start:start + limit] if limit else items
            metadata = {"resourceVersion": str(version)}
            if limit and start + limit < len(items):
                metadata["continue"] = f"{version}:{start + limit}"
            body = json.dumps({"kind": "List", "apiVersion": "v1", "metadata": metadata,
                               "items": [item for _, item in page]}, separators=(",", ":"))
        exchange.answer(body)

    def event(self, kind, item):
        return {"type": kind, "object": {"kind": "Thing", "apiVersion": "v1", **item}}

    def bookmark(self, version=None):
        return self.event("BOOKMARK", {"metadata": {"resourceVersion": str(version or self.version)}})

    def watch(self, exchange, kind):
        version = int(exchange.query.get("resourceVersion", 0))
        end = time.monotonic() + int(exchange.query.get("timeoutSeconds", 300))
        if version < self.oldest:
            exchange.status(410, "too old resource version", reason="Expired")
            return
        exchange.head()
        while not self.stopping.is_set() and time.monotonic() < end:
            with self.lock:
                news = [h for h in self.history if h[0] > version and h[1] == kind]
                if not news and not self.lock.wait(min(self.bookmark_s or 1, max(0, end - time.monotonic()))):
                    if self.bookmark_s:
                        version = self.version
                        news = None
            if news is None:
                exchange.part(self.bookmark(version))
                continue
            for version, _, event, item in news:
                exchange.part(self.event(event, item))
        exchange.end()
