"""A study whose arms choose their learning rate, and trials that come to what a test says."""

from __future__ import annotations

from collections.abc import Callable

from chip_core.results import Evaluation, TrialResult
from orchestrator.executors.base import Job

#: What a trial comes to; None is undefined.
Figure = Callable[[Job], float | None]

STUDY = """
study: tuned
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0, 1]
baseline: {objective: dpo}
benchmarks:
  select: [shapes]
  report: [shapes]
primary: {metric: shapes/chair_i, goal: minimize}
tune:
  keys:
    optimizer.lr: [1e-5, 5e-5, 1e-4]
  metric: select/shapes/chair_i
  goal: minimize
"""


def results_by(figure: Figure) -> Callable[[Job], TrialResult]:
    """Return what makes a job's result: 30 for the untrained model, else the figure."""

    def result_of(job: Job) -> TrialResult:
        evaluations = {}
        for side in ("select", "report"):
            for settings in getattr(job.config.benchmarks, side):
                prefix = "select/" if side == "select" else ""
                value = 30.0 if job.untrained else figure(job)
                metric = f"{prefix}{settings.name}/chair_i"
                evaluations[f"{side}/{settings.name}"] = Evaluation(
                    metrics={} if value is None else {metric: value},
                    items=4,
                    scores=f"scores/{side}-{settings.name}.json",
                    responses=f"responses/{side}-{settings.name}.jsonl",
                )
        steps = 0 if job.untrained or job.trained_model else 5
        return TrialResult(steps=steps, evaluations=evaluations, seconds={"train": 2.0})

    return result_of
