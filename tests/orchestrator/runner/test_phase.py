"""A phase of a study is one run of the executor: a trial begins when what it reads is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.executors.base import JobEvent, JobFinished, JobStarted
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import Plan
from orchestrator.run import run_study

from ..conftest import SHORT, TINY
from ..fakes import FakeTracker


class Watched(InlineExecutor):
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
    executor = Watched()
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
