"""ui, sync: open MLflow's pages of a work directory, and update them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

import click

from orchestrator.commands.common.options import (
    make_workdir_option,
    tracking_option,
    workdir_option,
)
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import IntegerType, TextType

#: Seconds for MLflow to show its first page, and to end after a signal.
_START_TIMEOUT, _STOP_TIMEOUT = 120.0, 10.0
_POLL_SECONDS = 0.1
#: Set for MLflow's server. Its runners of jobs and periodic tasks are seven more processes for
#: judges and traces, which studies do not use; users can enable them.
_FORCED_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
_DEFAULT_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
_LOOPBACK_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command(epilog="Example: chip-ablate sync encoder --tracking-uri http://127.0.0.1:5000")
@click.argument("studies", type=TextType(), metavar="[STUDY]...", nargs=-1)
@workdir_option
@tracking_option
@json_option()
def sync(studies: tuple[str, ...], workdir: Path, tracking_uri: str | None, as_json: bool) -> None:
    """Update MLflow with all studies of the work directory, or with those named.

    Runs that are up to date are not changed.
    """
    from chip_core.utils.errors import ConfigError, UserError
    from orchestrator.report.writers.terminal import tracking_lines
    from orchestrator.runner.sync import find_snapshots, sync_study
    from orchestrator.tracking.attachments import reattach_files
    from orchestrator.tracking.projection import MlflowProjection

    results, problems = [], []
    for snapshot in find_snapshots(workdir, studies):
        try:
            result = sync_study(snapshot, workdir, MlflowProjection(workdir, tracking_uri))
            reattach_files(workdir, tracking_uri, snapshot.study)
        except UserError as error:
            problems.append(str(error))
            continue
        results.append(result)
        if not as_json:
            [line] = tracking_lines(None, "", result.refused)
            click.echo(f"{result.study}: {line}: {result.trials} trials on {result.address}")
    if as_json:
        print_json({"synced": [asdict(synced) for synced in results], "problems": problems})
    if problems:
        raise ConfigError(dict.fromkeys(problems))


@click.command(epilog="Example: chip-ablate ui --port 5000")
@make_workdir_option("Its runs are shown.")
@click.option("--port", type=IntegerType(1, 65535), default=5000, show_default=True)
@click.option(
    "--host", type=TextType(), default="127.0.0.1", show_default=True, help="Address to listen on."
)
def ui(workdir: Path, port: int, host: str) -> int:
    """Open MLflow's pages on a work directory."""
    from chip_core.utils.errors import UserError
    from orchestrator.tracking.address import workdir_uri

    if not (workdir / "mlflow.db").exists():
        raise UserError(f"no runs in {workdir}: run a study first, or give its --workdir")
    uri = workdir_uri(workdir)
    _check_database(uri)
    _check_port_free(host, port)
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", uri,
        "--artifacts-destination", str(workdir.absolute() / "artifacts"),
        "--host", host, "--port", str(port),
        "--workers", "1", "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    with (
        _collect_signals() as received_signals,
        tempfile.TemporaryFile() as output,
        _run_server(command, output) as server,
    ):
        deadline = time.monotonic() + _START_TIMEOUT
        has_answered = False
        while not received_signals:
            if server.poll() is not None:
                if not has_answered:
                    _check_port_free(host, port)  # another may have been quicker
                raise UserError(f"MLflow's server has ended: {_last_line(output)}")
            if not has_answered and _is_answering(server, host, port):
                click.echo(
                    f"MLflow on {workdir}: {_format_address(host, port)} (stop it with Ctrl-C)"
                )
                has_answered = True
            if not has_answered and time.monotonic() > deadline:
                raise UserError(f"MLflow did not answer in {_START_TIMEOUT:.0f} s: try it again")
            time.sleep(_POLL_SECONDS)
    return 0


def _check_database(uri: str) -> None:
    """Check that the runs can be read.

    Raises:
        UserError: they cannot.
    """
    from orchestrator.tracking.address import StoreUnavailable, check_connection, explain_error

    try:
        check_connection(uri)
    except Exception as error:  # as a store's
        store_error = explain_error(error, uri)
        if not isinstance(store_error, StoreUnavailable):  # else a study writes to it just now
            raise store_error from None


def _check_port_free(host: str, port: int) -> None:
    """Check that the port of the pages is free.

    Raises:
        UserError: another program listens there, or listening is not possible.
    """
    from chip_core.utils.errors import UserError, to_printable

    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--host {to_printable(host)} --port {port}: cannot be used ({reason}): give another "
            "--port, or stop the program that listens there (another `chip-ablate ui`?)"
        ) from None


@contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Yield a list that records Ctrl-C, SIGTERM and the end of the terminal.

    They interrupt nothing, so that a server that is just starting is ended, too.
    """
    received: list[int] = []
    previous_handlers = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield received
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def _run_server(command: list[str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server, and end all of its processes whatever happens."""
    server = subprocess.Popen(
        command,
        env={**_DEFAULT_ENVIRONMENT, **os.environ, **_FORCED_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C reaches us alone, and one signal all of it
    )
    try:
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if _signal_and_wait(server, number):
                break


def _signal_and_wait(server: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Send a signal to all of a server's processes, and return whether they have ended."""
    next_signal, deadline = int(number), time.monotonic() + _STOP_TIMEOUT
    while time.monotonic() < deadline:
        server.poll()  # an ended process counts until it is reaped
        try:
            os.killpg(server.pid, next_signal)
        except ProcessLookupError:
            return True
        next_signal = 0  # from now on, only look
        time.sleep(_POLL_SECONDS / 2)
    return False


def _format_address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _is_answering(server: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Return whether the server's page answers, and not another program's."""
    if not _is_listening(server, port):
        return False
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(_format_address(_LOOPBACK_ADDRESSES.get(host, host), port), timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answers, not everybody by this name
    except OSError:
        return False
    return True


def _is_listening(server: subprocess.Popen[bytes], port: int) -> bool:
    """Return whether one of a server's processes listens on a port."""
    import psutil  # type: ignore[import-untyped]

    with suppress(psutil.Error):
        for process in psutil.Process(server.pid).children(recursive=True):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


def _last_line(output: IO[bytes]) -> str:
    """Return the last line of a server's output."""
    from chip_core.utils.errors import to_printable

    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    return to_printable(next((line.strip() for line in reversed(lines) if line.strip()), "?"), 300)
