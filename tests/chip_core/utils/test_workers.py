"""What the processes of a trial tell each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from chip_core.utils.errors import DiskFullError, TrialError
from chip_core.utils.workers import Workers


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (DiskFullError("no room\nfor it"), DiskFullError, "worker 1: no room"),
        (ValueError("odd"), TrialError, "worker 1: ValueError: odd"),
    ],
)
def test_a_failure_of_another_worker_is_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[Exception], said: str
) -> None:
    """Whichever worker's failure is looked at, it says what to do: a full disk stays one."""
    gathered: list[Any] = []

    def gather(workers: Workers, value: Any) -> list[Any]:
        gathered.append(value)
        return [value] if len(gathered) == 1 else [value, gathered[0]]

    monkeypatch.setattr(Workers, "all_gather", gather)

    def fails() -> None:
        raise failure

    with pytest.raises(type(failure)):
        Workers(rank=1, size=2).gather_results(fails)
    with pytest.raises(kind) as caught:
        Workers(rank=0, size=2).gather_results(lambda: None)
    assert type(caught.value) is kind
    assert str(caught.value) == said


#: One of two processes, of which the first makes something for longer than a worker waits.
WAITING = """
import sys, time
from datetime import timedelta
from chip_core.utils import workers
workers.HEARTBEAT_INTERVAL, workers.BARRIER_TIMEOUT = 0.2, timedelta(seconds=1)
def make():
    assert joined.is_main
    time.sleep(4)
    if sys.argv[1] == "fails":
        raise ValueError("no reply")
    return 7
with workers.join_workers() as joined:
    if sys.argv[1] == "in a collective":
        print(joined.broadcast_from_rank0(make))
    else:
        print(joined.wait_for_rank0(make))
"""


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        ("awaited", "7", "7"),
        ("fails", "ValueError: no reply", "TrialError: worker 0: ValueError: no reply"),
        # That the others do end where they wait in a collective.
        ("in a collective", "", "Timed out waiting"),
    ],
)
def test_what_takes_rank_0_longer_than_a_worker_waits(how: str, first: str, second: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, how],
            env={
                **os.environ,
                **{"RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=60)[0] for process in started]
    assert first in told[0]
    assert second in told[1]
    assert [process.returncode == 0 for process in started] == [how == "awaited"] * 2


def test_what_a_process_makes_alone_is_made_at_once() -> None:
    assert Workers().wait_for_rank0(lambda: 7) == 7
