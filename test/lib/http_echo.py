# SPDX-License-Identifier: Apache-2.0
"""The application of the demo and of tests: an HTTP server that says who it thinks is calling.

Usage: http_echo.py PORT. Listens on both families. It knows nothing of any proxy. The path
/bytes/N answers N bytes, each that of its position modulo 251; /drip/N answers N lines with their
numbers, one every 20 milliseconds.
"""

import http.server
import socket
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/drip/"):
            self.drip(int(self.path.removeprefix("/drip/")))
            return
        body = self.payload() if self.path.startswith("/bytes/") else self.report()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, lines):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(lines):
            self.wfile.write(f"{number}\n".encode())
            self.wfile.flush()
            time.sleep(0.02)
        self.close_connection = True

    def payload(self):
        size = int(self.path.removeprefix("/bytes/"))
        return (bytes(range(251)) * (size // 251 + 1))[:size]

    def report(self):
        peer = self.client_address[0].removeprefix("::ffff:")
        here = self.connection.getsockname()
        address = here[0].removeprefix("::ffff:")
        return f"path={self.path} peer={peer} local={address} port={here[1]}\n".encode()

    def log_message(self, *_args):
        print(self.client_address[0], self.path, flush=True)


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


if __name__ == "__main__":
    Server(("::", int(sys.argv[1])), Handler).serve_forever()
