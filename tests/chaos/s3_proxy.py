"""A proxy before a real S3 server that has bad moments: by a seed, or for as long as it is told to."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERRORS = {503: "SlowDown", 500: "InternalError"}
FAULTS = ("503", "500", "reset", "slow", "lost answer", "cut put")
_XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>by the proxy</Message></Error>'


class S3Proxy:
    """Passes requests on to an S3 server.

    Attributes:
        url: where it listens.
        done: how often each fault was.
    """

    def __init__(self, endpoint):
        target = urlsplit(endpoint)
        self.target = (target.hostname, target.port)
        self.done = Counter()
        self._random, self._chance, self._kinds = random.Random(0), 0.0, FAULTS
        self._away_until = 0.0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def calm(self):
        """No more faults."""
        self._chance = self._away_until = 0.0

    def storm(self, seed, chance, kinds=FAULTS):
        """From now on each request goes wrong with some chance."""
        self.done = Counter()
        self._random, self._chance, self._kinds = random.Random(seed), chance, kinds

    def away(self, seconds):
        """For a while no request comes through: half of them are refused, half of them cut."""
        self._away_until = time.monotonic() + seconds

    def draw(self):
        """What goes wrong with the next request, or None."""
        with self._lock:
            if time.monotonic() < self._away_until:
                fault = self._random.choice(("503", "reset"))
            elif self._random.random() < self._chance:
                fault = self._random.choice(self._kinds)
            else:
                return None
            self.done[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def do(self):
        try:
            body = self._body()
        except (EOFError, ValueError):  # its sender was killed on the way; a server of S3 takes no half of an object
            self.close_connection = True
            return
        fault = self.proxy.draw()
        if fault in {"cut put", "lost answer"} and self.command == "GET":
            fault = "reset"
        if fault in {"503", "500"}:
            self._answer(int(fault), [], _XML.format(ERRORS[int(fault)]).encode())
        elif fault == "reset":
            self._reset()
        elif fault == "cut put":
            self._pass_half(body)
            self._reset()
        else:
            status, headers, content = self._pass(body)
            if fault == "lost answer":
                self._reset()
            else:
                self._answer(status, headers, content, slow=fault == "slow")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do  # noqa: N815  # http.server's names

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._exactly(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self._exactly(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _exactly(self, size):
        content = self.rfile.read(size)
        if len(content) < size:
            raise EOFError
        return content

    def _headers(self):
        hop = {"connection", "expect", "transfer-encoding", "content-length"}
        return [(name, value) for name, value in self.headers.items() if name.lower() not in hop]

    def _begin(self, length):
        server = http.client.HTTPConnection(*self.proxy.target, timeout=60)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in [*self._headers(), ("Content-Length", str(length)), ("Connection", "close")]:
            server.putheader(name, value)
        server.endheaders()
        return server

    def _pass(self, body):
        server = self._begin(len(body))
        with contextlib.closing(server):
            server.send(body)
            answer = server.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _pass_half(self, body):
        with contextlib.suppress(OSError), contextlib.closing(self._begin(len(body))) as server:
            server.send(body[: len(body) // 2])

    def _answer(self, status, headers, content, *, slow=False):
        self.send_response_only(status)
        hop = {"connection", "transfer-encoding"} | (set() if self.command == "HEAD" else {"content-length"})
        for name, value in headers:
            if name.lower() not in hop:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if slow:
            for at in range(10):
                self.wfile.write(content[at * len(content) // 10 : (at + 1) * len(content) // 10])
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(content)

    def _reset(self):
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
