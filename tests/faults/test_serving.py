"""A server, its study and the network between them are killed; the link by itself.

`python -m tests.faults.serving` does all cases and keeps what came of them.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.faults.link import Asked, Link
from tests.faults.serving import CASES, Case, Place, one, opened


class Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        held = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(held)))
        self.end_headers()
        self.wfile.write(held)

    def log_message(self, format: str, *given: Any) -> None:
        pass


@pytest.fixture
def link() -> Iterator[Link]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made = Link(server.server_port)
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def ask(link: Link, model: str, timeout: float = 30.0) -> bytes:
    body = json.dumps({"model": model, "messages": [{"content": "What?"}]})
    connection = http.client.HTTPConnection("127.0.0.1", link.port, timeout=timeout)
    try:
        connection.request("POST", "/v1/chat/completions", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_link_notes_what_passes_and_fails_as_it_is_told(link: Link) -> None:
    port = link.port
    assert json.loads(ask(link, "a"))["model"] == "a"
    ask(link, "b")
    ask(link, "a")
    assert [(each.model, each.models, each.number) for each in link.asked] == [
        ("a", 1, 1),
        ("b", 2, 1),
        ("a", 2, 2),
    ]
    link.silence()
    with pytest.raises(TimeoutError):
        ask(link, "a", timeout=0.5)
    link.mend()
    link.cut()
    with pytest.raises(ConnectionRefusedError):
        ask(link, "a")
    link.mend()
    assert link.port == port and ask(link, "a")

    def cuts(asked: Asked) -> None:
        link.cut()

    link.begin(cuts)
    with pytest.raises((ConnectionError, http.client.HTTPException)):  # it was under way
        ask(link, "a")
    assert [each.model for each in link.asked] == ["a"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with opened(tmp_path_factory.mktemp("serving")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES, ids=str)
def test_whatever_is_killed_the_figures_are_those_of_the_undisturbed_study(
    case: Case, place: Place, tmp_path: Path
) -> None:
    outcome = one(place, case, tmp_path / "case")
    assert outcome.survived, outcome
    assert "Traceback" not in "".join(outcome.said)
