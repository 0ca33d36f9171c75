"""A real HTTP server that speaks as OpenAI's does, and fails in every way that one can."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-0123456789wxyz"  # its end is no number, which a port could have

#: What a call does: (handler, number of the call from 0, its body) -> None
Behaviour = Callable[["Handler", int, dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers a POST as the server's behaviour says; files and batches are the server's own."""

    server: JudgeServer

    def do_GET(self) -> None:
        self.server.batches.get(self)

    def do_POST(self) -> None:
        if "/files" in self.path or "/batches" in self.path:
            self.server.batches.post(self)
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.calls)
            self.server.calls.append(body)
            self.server.keys.append(self.headers.get("Authorization", ""))
        self.server.behaviour(self, number, body)

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, text: str | None, *, model: str = "judge-2026-01-01") -> None:
        """Answer as a whole chat completion does."""
        self.send(make_completion(text) | {"model": model})

    def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, content)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def drop_connection(self) -> None:
        """Close the connection without a word."""
        self.close_connection = True
        self.connection.close()

    def stall(self, seconds: float) -> None:
        """Say nothing for a while."""
        self.server.stopped.wait(seconds)
        self.close_connection = True


#: What a batch makes of a row: (row's number from 0, over all batches, its body) -> (status, body)
RowBehaviour = Callable[[int, dict[str, Any]], tuple[int, Any]]


def make_completion(text: str | None) -> dict[str, Any]:
    """Return a whole chat completion."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-2026-01-01",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


def rate_row(number: int, body: dict[str, Any]) -> tuple[int, Any]:
    """Rate as `rate_question` does."""
    return 200, make_completion(f"Rating: {len(body['messages'][-1]['content']) % 7}")


class BatchEndpoints:
    """OpenAI's files and batches: a batch ends when it was looked at `looks` times."""

    def __init__(self) -> None:
        self.row: RowBehaviour = rate_row
        self.looks = 2
        self.ends = "completed"
        self.errors: Any = None
        self.expires_after: int | None = None  # rows that are answered before it expires
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.paid = 0  # rows that were answered
        #: told of what is about to be answered: "file", "batch", "look", "content", "list"
        self.before: Callable[[str], None] = lambda moment: None

    def post(self, handler: Handler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        if handler.path.endswith("/files"):
            kind = handler.headers["Content-Type"].encode()
            parsed = message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + content)
            rows = next(
                part.get_payload(decode=True)
                for part in parsed.get_payload()
                if part.get_param("name", header="content-disposition") == "file"
            )
            name = self._keep(rows)
            self.before("file")
            handler.send({"id": name, "object": "file", "purpose": "batch"})
            return
        asked = json.loads(content)
        batch = {
            "id": f"batch-{len(self.made)}",
            "object": "batch",
            "endpoint": asked["endpoint"],
            "completion_window": asked["completion_window"],
            "created_at": 1,
            "input_file_id": asked["input_file_id"],
            "status": "in_progress",
            "looks": 0,
        }
        self.made.append(batch)
        self.before("batch")
        handler.send(batch)

    def get(self, handler: Handler) -> None:
        parts = handler.path.split("?")[0].split("/")
        if parts[-1] == "content":
            self.before("content")
            if parts[-2] in self.files:
                handler.send(self.files[parts[-2]])
            else:
                handler.send({"error": {"message": "no such file"}}, status=404)
        elif parts[-1] == "batches":
            self.before("list")
            handler.send({"object": "list", "data": self.made[::-1], "has_more": False})
        else:
            batch = next((one for one in self.made if one["id"] == parts[-1]), None)
            if batch is None:
                handler.send({"error": {"message": "no such batch"}}, status=404)
                return
            batch["looks"] += 1
            if batch["looks"] >= self.looks and batch["status"] == "in_progress":
                self._end(batch)
            self.before("look")
            handler.send(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        batch["status"] = self.ends if self.expires_after is None else "expired"
        if self.ends == "failed":
            batch["errors"] = {"object": "list", "data": self.errors}
            return
        lines: dict[str, list[Any]] = {"output_file_id": [], "error_file_id": []}
        rows = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        for place, row in enumerate(rows):
            assert (row["method"], row["url"]) == ("POST", "/v1/chat/completions")
            named = {"id": "r", "custom_id": row["custom_id"]}
            if self.expires_after is not None and place >= self.expires_after:
                error = {"code": "batch_expired", "message": "not in time"}
                lines["error_file_id"].append({**named, "response": None, "error": error})
                continue
            status, body = self.row(self.paid, row["body"])
            self.paid += 1
            response = {"status_code": status, "request_id": "q", "body": body}
            which = "output_file_id" if status == 200 else "error_file_id"
            lines[which].append({**named, "response": response, "error": None})
        for which, found in lines.items():
            text = "".join(json.dumps(line) + "\n" for line in reversed(found))  # in any order
            batch[which] = self._keep(text.encode()) if found else None

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name


class JudgeServer(ThreadingHTTPServer):
    """Counts its calls."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.batches = BatchEndpoints()
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
def run_judge_server(behaviour: Behaviour) -> Iterator[JudgeServer]:
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


def rate_question(handler: Handler, number: int, body: dict[str, Any]) -> None:
    """Rate by the last word of the question."""
    handler.reply(f"Rating: {len(body['messages'][-1]['content']) % 7}")


def rate_slowly(seconds: float) -> Behaviour:
    def answer(handler: Handler, number: int, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        rate_question(handler, number, body)

    return answer
