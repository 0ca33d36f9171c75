"""A real HTTP server that speaks as OpenAI's does, and fails in every way that one can."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789"

#: What a call does: (handler, number of the call from 0, its body) -> None
Behaviour = Callable[["Handler", int, dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers POST /v1/chat/completions as the server's behaviour says."""

    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.calls)
            self.server.calls.append(body)
            self.server.keys.append(self.headers.get("Authorization", ""))
        self.server.behaviour(self, number, body)

    def log_message(self, *args: object) -> None:
        pass

    def say(self, text: str | None, *, model: str = "judge-2026-01-01") -> None:
        """Answer as a whole chat completion does."""
        message = {"role": "assistant", "content": text}
        self.send(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": model,
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
            }
        )

    def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, content)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def drop(self) -> None:
        """Close the connection without a word."""
        self.close_connection = True
        self.connection.close()

    def stall(self, seconds: float) -> None:
        """Say nothing for a while."""
        self.server.stopped.wait(seconds)
        self.close_connection = True


class JudgeServer(ThreadingHTTPServer):
    """Counts its calls."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = behaviour
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args: object) -> None:
        pass  # a connection that was dropped on purpose


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[JudgeServer]:
    server = JudgeServer(behaviour)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def good(handler: Handler, number: int, body: dict[str, Any]) -> None:
    """Rate by the last word of the question."""
    handler.say(f"Rating: {len(body['messages'][-1]['content']) % 7}")


def slowly(seconds: float) -> Behaviour:
    def answer(handler: Handler, number: int, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        good(handler, number, body)

    return answer
