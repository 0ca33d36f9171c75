"""The network between a study and a server of its user: it notes what passes, and can fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProxiedRequest:
    """A question on its way to the server."""

    model: str  # the name that the request has
    models: int  # how many models have been asked so far, this one included
    number: int  # of this model's questions, from 1
    content: Any  # the question's parts


class FaultyProxy:
    """A proxy on 127.0.0.1, at one port for as long as it lives.

    `cut` resets its connections and refuses new ones, `silence` takes requests and lets nothing
    through, `restore` ends both.
    """

    def __init__(self, server_port: int) -> None:
        self.requests: list[ProxiedRequest] = []
        # Called before a question goes on to the server.
        self.watch: Callable[[ProxiedRequest], None] = lambda request: None
        self._server_port = server_port
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._open: set[socket.socket] = set()
        self._passes = threading.Event()
        self._passes.set()
        self._proxy: ThreadingHTTPServer | None = None
        self.port = 0
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def reset(self, watch: Callable[[ProxiedRequest], None]) -> None:
        """Forget what has passed; call `watch` with each question from now on."""
        with self._lock:
            self.requests, self._counts, self.watch = [], {}, watch

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.shutdown()
            proxy.server_close()
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)  # closed by a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Let nothing through, in either direction."""
        self._passes.clear()

    def restore(self) -> None:
        """Let requests through again."""
        if not self._passes.is_set():
            self.cut()  # what was sent meanwhile is lost
            self._passes.set()
        if self._proxy is None:
            self._listen()

    def close(self) -> None:
        """End it."""
        self._passes.set()
        self.cut()

    def _listen(self) -> None:
        link = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with link._lock:
                    link._open.add(self.connection)

            def finish(self) -> None:
                with link._lock:
                    link._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                link.watch(link._note(json.loads(body)))
                self.close_connection = True  # where nothing comes back
                with contextlib.suppress(OSError, http.client.HTTPException):
                    self._forward(body)

            def _forward(self, body: bytes) -> None:
                link._passes.wait()
                with link._lock:
                    if self.connection not in link._open:
                        return
                upstream = http.client.HTTPConnection("127.0.0.1", link._server_port, timeout=300)
                upstream.request("POST", self.path, body, {"Content-Type": "application/json"})
                answer = upstream.getresponse()
                held = answer.read()
                upstream.close()
                link._passes.wait()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(held)))
                self.end_headers()
                self.wfile.write(held)
                self.close_connection = False

            def log_message(self, format: str, *given: Any) -> None:
                pass

        class Proxy(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # connections that were reset

        self._proxy = Proxy(("127.0.0.1", self.port), Handler)
        self.port = self._proxy.server_port
        threading.Thread(target=self._proxy.serve_forever, args=(0.05,), daemon=True).start()

    def _note(self, body: dict[str, Any]) -> ProxiedRequest:
        with self._lock:
            name = body["model"]
            self._counts[name] = self._counts.get(name, 0) + 1
            request = ProxiedRequest(
                model=name,
                models=len(self._counts),
                number=self._counts[name],
                content=body["messages"][0]["content"],
            )
            self.requests.append(request)
        return request
