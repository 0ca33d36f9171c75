"""ui: real processes of MLflow's server, as few as may be, none left."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ..program import run_program

PROGRAM = [sys.executable, "-c", "from orchestrator.cli import program; program()", "ui"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def start_ui(workdir: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Start `chip-ablate ui` as a process of its own, ended if the test does not."""
    begun: list[subprocess.Popen[str]] = []

    def start(port: int) -> subprocess.Popen[str]:
        command = [*PROGRAM, "--workdir", str(workdir), "--port", str(port)]
        begun.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            for below in psutil.Process(process.pid).children(recursive=True):
                below.kill()
            process.kill()
            process.communicate()


def expect_refusal(workdir: Path, port: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_program("ui", "--workdir", workdir, "--port", port) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    return line


@pytest.mark.e2e
def test_two_processes_serve_the_page_and_none_is_left(
    start_ui: Callable[[int], subprocess.Popen[str]],
    port: int,
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ui = start_ui(port)
    assert ui.stdout is not None
    # The line comes when the page answers: it is asked once.
    assert (
        ui.stdout.readline() == f"MLflow on {workdir}: http://127.0.0.1:{port} (stop it with "
        "Ctrl-C)\n"
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
        assert b"MLflow" in page.read()
    processes = psutil.Process(ui.pid).children(recursive=True)
    # MLflow's command and the server that it starts; with its job runners there were nine.
    assert len(processes) == 2, [process.cmdline() for process in processes]
    places = {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert places == {"127.0.0.1"}
    # Another one in its place is told so, whose address it would be.
    assert "Address already in use" in expect_refusal(workdir, port, capsys)
    ui.send_signal(signal.SIGTERM)
    assert ui.wait(30) == 0
    assert ui.stdout.read() == ""
    assert ui.stderr is not None
    assert ui.stderr.read() == ""
    assert not [process for process in processes if process.is_running()]


@pytest.mark.e2e
def test_ctrl_c_while_it_starts_leaves_nothing(
    start_ui: Callable[[int], subprocess.Popen[str]], port: int
) -> None:
    ui = start_ui(port)
    own = psutil.Process(ui.pid)
    due = time.monotonic() + 60
    while not own.children(recursive=True):
        assert time.monotonic() < due
        time.sleep(0.02)
    processes = own.children(recursive=True)
    ui.send_signal(signal.SIGINT)
    output, complaints = ui.communicate(timeout=30)
    assert (ui.returncode, output, complaints) == (0, "", "")
    assert not [process for process in processes if process.is_running()]


def test_a_port_that_another_program_has_is_told(
    workdir: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        line = expect_refusal(workdir, port, capsys)
    assert f"--port {port}: cannot be used (Address already in use)" in line
    assert "give another --port" in line


def test_an_address_that_is_not_ours_is_told(
    workdir: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for host in ("192.0.2.1", "no host", "a..b"):  # the first is for documentation alone
        assert run_program("ui", "--workdir", workdir, "--port", port, "--host", host) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"--host {host} --port {port}: cannot be used" in line


def test_runs_that_cannot_be_read_are_told(
    tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no runs in" in expect_refusal(tmp_path, port, capsys)
    (tmp_path / "mlflow.db").write_text("no database at all, but long enough for a header" * 9)
    assert "file is not a database" in expect_refusal(tmp_path, port, capsys)


def test_a_server_that_ends_by_itself_is_told_in_its_own_words(
    workdir: Path, port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    # `/bin/sh -m mlflow …`: a shell that finds no script of that name
    line = expect_refusal(workdir, port, capsys)
    assert "MLflow's server has ended: " in line
    assert "mlflow" in line
