"""What the workers of test_ray_early.py do in place of a trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from chip_core.files import write_json
from chip_core.results import RESULT, Progress, TrialResult
from orchestrator.executors.base import Job

STEPS, SECONDS = 40, 0.5


def play(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    """Make steps; `good` is right in all pairs, `bad` in none."""
    value = 1.0 if job.name == "good" else 0.0
    for step in range(1, STEPS + 1):
        (job.folder / "steps").write_text(str(step))
        figures = {"reward/accuracy": value}
        report(Progress(phase="train", done=step, total=STEPS, figures=figures))
        if job.may_be_cut:
            time.sleep(SECONDS)
    write_json(job.folder / RESULT, asdict(TrialResult(steps=STEPS, evaluations={}, seconds={})))
