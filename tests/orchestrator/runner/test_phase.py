"""A phase of a study is one run of the executor: a trial begins when what it reads is there.

One server for all arms of a study: real answers, a death in the middle, and Ctrl-C.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.study_server import read_address
from chip_core.utils.errors import UserError
from orchestrator.executors.base import Job, JobEvent, JobFinished, JobProgressed, JobStarted
from orchestrator.executors.inline import InlineExecutor
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan
from orchestrator.report.writers.plan import evaluation_lines
from orchestrator.run import run_study
from orchestrator.runner.jobs import make_jobs
from orchestrator.runner.phase import run_study_server
from orchestrator.state.ledger import Ledger

from ...chip_core.evaluation.generators.fake_vllm import QUICK, REAL, write_program
from ..conftest import SHORT, TINY
from ..fakes import FakeExecutor, FakeTracker


class RecordingExecutor(InlineExecutor):
    """Notes its runs, and what begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[str]] = []
        self.order: list[tuple[str, str]] = []
        self.caches: dict[str, bool] = {}

    def run(self, jobs: Any, on_event: Any, retry: Any = None, more: Any = None) -> None:
        self.given.append([job.name for job in jobs])

        def listener(event: JobEvent) -> None:
            if isinstance(event, JobStarted | JobFinished):
                self.order.append((type(event).__name__, event.job.name))
                self.caches.setdefault(event.job.name, event.job.caches is not None)
            on_event(event)

        super().run(jobs, listener, retry, more)


def test_trials_wait_for_the_caches_that_they_read_and_no_others_do(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of(TINY, overrides={**SHORT, "engine.feature_cache": "off"})
    executor = RecordingExecutor()
    run_study(
        plan,
        workdir=tmp_path,
        executor=lambda: executor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    (given,) = executor.given
    part, base = given
    assert part.startswith("reference pass") and base == "base"
    built = executor.order.index(("JobFinished", part))
    trained = {name for _, name in executor.order} - {part, base}
    assert trained and all(executor.order.index(("JobStarted", name)) > built for name in trained)
    assert executor.caches == {part: False, base: False} | dict.fromkeys(trained, True)


PlanOf = Callable[..., Plan]

STUDY = f"""{TINY.replace("limit: 2", "limit: 4")}
evaluation:
  generator: {{kind: vllm, serves: study, retries: 1}}
  parity: {{items: 2, share: 1.0}}
"""
ADAPTERS = {
    **SHORT,
    **{"vision_encoder": "frozen", "projector": "frozen", "language_model": "lora"},
    **{"training.max_steps": 2, "optimizer.lr": 3e-3},
}


def find_processes(within: Path) -> list[psutil.Process]:
    """Find the processes of the program that run in a folder."""
    found = []
    for process in psutil.Process().children(recursive=True):
        if str(within) in " ".join(process.cmdline()):
            found.append(process)
    return found


class ServerKillingExecutor(InlineExecutor):
    """Kills the server when the second arm has had an answer, and others are under way."""

    killed = 0

    def run(self, jobs: Any, on_event: Any, retry: Any = None, more: Any = None) -> None:
        def listener(event: JobEvent) -> None:
            on_event(event)
            if not isinstance(event, JobProgressed) or self.killed:
                return
            told = event.progress
            if event.job.name.startswith("chip") and told.phase == "check shapes" and told.done:
                assert event.job.server is not None
                self.killed = kill_server(event.job.server.parent / "vllm-1.log")

        super().run(jobs, listener, retry, more)


def kill_server(log: Path) -> int:
    """Kill what writes to a log, with all that it started."""
    for process in psutil.Process().children(recursive=True):
        if "fake_vllm" in " ".join(process.cmdline()) and "-c" not in process.cmdline():
            process.send_signal(signal.SIGKILL)
            return process.pid
    raise AssertionError(f"no server: {log.read_text()}")


@pytest.mark.timeout(600)
def test_arms_are_answered_by_one_server_which_dies_and_is_started_again(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm.PROGRAM_VARIABLE, str(write_program(tmp_path, REAL)))
    plan = plan_of(STUDY, overrides=ADAPTERS)
    said = [str(line) for line in evaluation_lines(plan, Ledger(tmp_path / "runs"))]
    assert any(line.startswith("answers: one server for 2 arms and the untrained") for line in said)
    executor = ServerKillingExecutor()
    outcome = run_study(
        plan,
        workdir=tmp_path / "runs",
        executor=lambda: executor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    assert outcome.failed == {} and executor.killed
    folder = tmp_path / "runs" / "engines" / plan.study.name
    loaded = [re.findall("loaded (.*)", (folder / f"vllm-{n}.log").read_text()) for n in (1, 2)]
    # the first server had both adapters, each by a name of its own; the second the one that is left
    assert len(set(loaded[0])) == 2 and loaded[1] == loaded[0][1:]
    records = Ledger(tmp_path / "runs")
    for trial in plan.trials:
        (scored,) = records[trial.fingerprint].evaluations.values()
        metadata = scored.evaluation.metadata
        assert metadata["generator"] == "vLLM 0.0.2"
        assert metadata["parity"]["equal"] == metadata["parity"]["items"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["vllm-1.log", "vllm-2.log"]
    assert find_processes(tmp_path) == []


class ServerWatchingExecutor(FakeExecutor):
    """Sees the server that its jobs would ask."""

    seen: Any = None

    def run(self, jobs: Sequence[Job], *given: Any, **named: Any) -> None:
        (address,) = {job.server for job in jobs if job.shard is None}
        assert address is not None
        self.seen = read_address(address)
        super().run(jobs, *given, **named)


@pytest.mark.usefixtures("blank_figures")
def test_ctrl_c_ends_the_server_with_the_study(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_program(tmp_path, QUICK)
    monkeypatch.setenv(vllm.PROGRAM_VARIABLE, str(program))
    executor = ServerWatchingExecutor(interrupt_before="base")
    plan = plan_of(STUDY, overrides=ADAPTERS)
    outcome = run_study(
        plan,
        workdir=tmp_path / "runs",
        executor=lambda: executor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    assert outcome.interrupted and executor.seen.state == "up"
    assert find_processes(program) == []
    folder = tmp_path / "runs" / "engines" / plan.study.name
    assert [path.name for path in folder.iterdir()] == ["vllm-1.log"]


def test_what_keeps_the_server_from_its_start_is_one_line(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm.PROGRAM_VARIABLE, str(write_program(tmp_path, QUICK)))
    plan = plan_of(STUDY, overrides=ADAPTERS)
    jobs = [job for job, _, _ in make_jobs(plan, Ledger(tmp_path), tmp_path)]
    where = "^evaluation.generator.serves is study: "

    # what a search will try is in none of the plan's arms
    config = jobs[-1].config
    tried = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": 1024})})
    searched = [*jobs, replace(jobs[-1], config=tried)]
    with (
        pytest.raises(UserError, match=f"{where}vLLM accepts adapters of rank up to 512"),
        run_study_server(plan, searched, FakeExecutor(), tmp_path / "engine", StopRequest()),
    ):
        pass

    (tmp_path / "engine").write_text("in its place")
    with (
        pytest.raises(UserError, match=f"{where}.*File exists"),
        run_study_server(plan, jobs, FakeExecutor(), tmp_path / "engine", StopRequest()),
    ):
        pass
    assert find_processes(tmp_path) == []
