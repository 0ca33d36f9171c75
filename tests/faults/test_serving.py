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

from tests.faults.proxy import FaultyProxy, ProxiedRequest
from tests.faults.serving import CASES, Case, ServingSetup, open_setup, run_case


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
def proxy() -> Iterator[FaultyProxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made = FaultyProxy(server.server_port)
    yield made
    made.close()
    server.shutdown()
    server.server_close()


def ask(proxy: FaultyProxy, model: str, timeout: float = 30.0) -> bytes:
    body = json.dumps({"model": model, "messages": [{"content": "What?"}]})
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request("POST", "/v1/chat/completions", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_link_notes_what_passes_and_fails_as_it_is_told(proxy: FaultyProxy) -> None:
    port = proxy.port
    assert json.loads(ask(proxy, "a"))["model"] == "a"
    ask(proxy, "b")
    ask(proxy, "a")
    assert [(each.model, each.models, each.number) for each in proxy.requests] == [
        ("a", 1, 1),
        ("b", 2, 1),
        ("a", 2, 2),
    ]
    proxy.silence()
    with pytest.raises(TimeoutError):
        ask(proxy, "a", timeout=0.5)
    proxy.restore()
    proxy.cut()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy, "a")
    proxy.restore()
    assert proxy.port == port and ask(proxy, "a")

    def cuts(request: ProxiedRequest) -> None:
        proxy.cut()

    proxy.reset(cuts)
    with pytest.raises((ConnectionError, http.client.HTTPException)):  # it was under way
        ask(proxy, "a")
    assert [each.model for each in proxy.requests] == ["a"]


@pytest.fixture(scope="module")
def serving_setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSetup]:
    with open_setup(tmp_path_factory.mktemp("serving")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES, ids=str)
def test_whatever_is_killed_the_figures_are_those_of_the_undisturbed_study(
    case: Case, serving_setup: ServingSetup, tmp_path: Path
) -> None:
    outcome = run_case(serving_setup, case, tmp_path / "case")
    assert outcome.survived, outcome
    assert "Traceback" not in "".join(outcome.said)
