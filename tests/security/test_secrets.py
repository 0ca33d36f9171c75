"""No password and no key in what is shown or written; a tracking server that says anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chip_core.utils.errors import UserError
from orchestrator.tracking import address
from orchestrator.tracking.client import MlflowStore

from . import refusals

SECRET = "s3cret-0123"


@contextmanager
def run_status_server(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join(5)


ANSWERS = {
    "nothing": (200, b""),
    "HTML": (200, b"<html><script>alert(1)</script></html>"),
    "a list": (200, b"[]"),
    "a number": (200, b"5"),
    "deep": (200, b"[" * 100_000),
    "5,000 digits": (200, b'{"experiment": ' + b"9" * 5000 + b"}"),
    "an unknown field": (200, b'{"experiment": {"pickle": 1}}'),
    "not UTF-8": (200, b'{"experiment": "\xff"}'),
    "a stage of numbers": (200, b'{"experiment": {"experiment_id": 1, "lifecycle_stage": 2}}'),
    "refused": (401, b"\x1b[31mno " + SECRET.encode()),
    "forbidden": (403, b"Invalid Host header"),
    "broken": (400, b'{"error_code": 5, "message": {"a": 1}}'),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_tracking_server_that_says_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, body = ANSWERS[name]
    with run_status_server(status, body) as place:
        store = MlflowStore(Path(), f"http://user:{SECRET}@{place}")

        def act() -> None:
            store.open("small")
            store.runs()

        said = refusals.expect_refusal("tracking servers", act, UserError)
    assert SECRET not in said


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"http://user:{SECRET}@host:5000", "http://user:***@host:5000"),
        (f"postgresql://u:{SECRET}@db/ml", "postgresql://u:***@db/ml"),
        (f"postgresql://db/ml?user=u&password={SECRET}", "postgresql://db/ml?user=u&password=***"),
        (f"https://host/ml?token={SECRET}#x", "https://host/ml?token=***#x"),
        (f"https://{SECRET}@host/ml", "https://***@host/ml"),
        ("sqlite:////a/mlflow.db", "sqlite:////a/mlflow.db"),
        ("http://host:5000/?page=2", "http://host:5000/?page=2"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(uri: str, shown: str) -> None:
    store = MlflowStore(Path(), uri)
    assert store.address == shown
    said = str(
        address.explain_error(ValueError(f"cannot open {uri}: {SECRET} is wrong"), store.uri)
    )
    assert (SECRET in said) is (SECRET not in uri)  # it knows only what the address says
