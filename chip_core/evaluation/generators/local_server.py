"""A server that this process starts, waits for and stops; it never outlives the process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import requests

from chip_core.utils.errors import TrialError, to_printable

#: Runs a command in its own session until it ends or stdin is closed, which happens when this
#: process ends for any reason. Then it ends the whole session.
_GUARD = """
import os, signal, subprocess, sys, threading, time
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
def end():
    sys.stdin.buffer.read()
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 0)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + patience
        while time.monotonic() < until and server.poll() is None:
            time.sleep(0.1)
threading.Thread(target=end, daemon=False).start()
code = server.wait()
try:
    os.killpg(server.pid, signal.SIGKILL)
except ProcessLookupError:
    pass
os._exit(code if code >= 0 else 128 - code)
"""


class LocalServer:
    """A running server."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        health: str,
        log: Path,
        environment: Mapping[str, str],
        start_timeout: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the server, and wait until it answers.

        Args:
            command: its command line.
            health: an address that answers 200 once the server is ready.
            log: the file for its output.
            environment: variables in addition to this process's environment.
            start_timeout: the longest start, in seconds.
            should_stop: called meanwhile; true: give up.

        Raises:
            TrialError: it did not start; with its last line of output.
        """
        self._log, self._should_stop = log, should_stop
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _GUARD, *command],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C must reach this process alone, which stops it
            )
        try:
            self._wait_until_ready(command[0], health, time.monotonic() + start_timeout)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, name: str, health: str, until: float) -> None:
        session = requests.Session()
        session.trust_env = False  # a proxy of the environment does not reach this machine
        while time.monotonic() < until:
            if self._should_stop():
                raise TrialError(f"{name} was stopped before it had started")
            if not self.is_running:
                raise TrialError(f"{name} did not start: {self.last_line()} ({self._log})")
            with suppress(requests.RequestException):
                if session.get(health, timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise TrialError(f"{name} did not start in time: {self.last_line()} ({self._log})")

    @property
    def is_running(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop it, and all that it started."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def last_line(self) -> str:
        """Return the last line of its output, or how it ended without any."""
        lines = self._log.read_text(errors="replace").split("\n")
        for line in reversed(lines):
            if line.strip():
                return to_printable(line.strip())[:300]
        code = self._process.poll()  # 137: killed, by the kernel if memory ran out
        return "no output" if code is None else f"no output, exit code {code}"
