"""A proxy that goes wrong by a seed: what lies between a laptop and a dashboard on a bad day."""

import random
import re
import socket
import struct
import threading
import time
from contextlib import suppress

ANSWERS = [b"HTTP/1.1 %d Oops\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops" % code for code in (500, 502)]
FAULTS = ("refuse", "answer", "cut request", "cut response", "reset response", "half-close", "stall", "slow")


class FaultProxy:
    """Passes TCP connections on to a dashboard; each of the first few goes wrong with some chance.

    Attributes:
        url: where it listens.
        done: what went wrong, in order.
        requests: (method, path) of what came in.
    """

    def __init__(self, target, seed, *, num_faults=6, chance=0.5, stall_s=6.0):
        self._target = target
        self._random = random.Random(seed)
        self._left, self._chance, self._stall_s = num_faults, chance, stall_s
        self._lock = threading.Lock()
        self.done = []
        self.requests = []
        self._open = []
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def close(self):
        """Takes no more connections."""
        self._server.close()

    def away(self, seconds):
        """Cuts all connections and takes none for a while, as a dashboard does that is started again."""
        port = self._server.getsockname()[1]
        self.leave()
        time.sleep(seconds)
        self._listen(port)

    def leave(self):
        """Cuts all connections and takes none any more."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _listen(self, port):
        self._server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        server = self._server
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _plan(self):
        """What goes wrong with a connection, and after how many bytes."""
        with self._lock:
            if not self._left or self._random.random() > self._chance:
                return None, 0
            self._left -= 1
            self.done.append(self._random.choice(FAULTS))
            return self.done[-1], int(10 ** self._random.uniform(0, 4.5))

    def _serve(self, client):
        fault, after = self._plan()
        with client, suppress(OSError):
            if fault == "refuse":
                return
            if fault == "answer":
                client.recv(1 << 16)
                client.sendall(random.choice(ANSWERS))
                return
            with socket.create_connection(self._target) as head:
                up = threading.Thread(target=self._pass, args=(client, head, fault, after, True), daemon=True)
                up.start()
                self._pass(head, client, fault, after, False)
                with suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                up.join(1 if fault else None)

    def _pass(self, source, target, fault, left, is_request):
        """Hands bytes on until the plan says otherwise."""
        mine = fault is not None and (fault == "cut request") == is_request
        with suppress(OSError):
            while chunk := source.recv(1 << 16):
                if is_request and (begun := re.match(r"([A-Z]+) (\S+) HTTP/", chunk[:1000].decode("latin-1"))):
                    self.requests.append(begun.groups())
                if not mine or left > len(chunk):
                    target.sendall(chunk)
                    left -= len(chunk)
                    continue
                target.sendall(chunk[:left])
                if fault == "slow":
                    for at in range(left, min(len(chunk), left + 300)):
                        target.sendall(chunk[at : at + 1])
                        time.sleep(0.002)
                    target.sendall(chunk[left + 300 :])
                    mine = False
                    continue
                if fault == "stall":
                    time.sleep(self._stall_s)
                elif fault == "half-close":
                    target.shutdown(socket.SHUT_WR)
                    time.sleep(self._stall_s)
                elif fault == "reset response":
                    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                for one in (source, target):
                    one.close()
                return
