"""A study whose arms choose their learning rate, and trials that come to what a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from chip_core.results import Evaluation, TrialResult
from orchestrator.executors.base import Job
from orchestrator.plan.plan import Plan
from orchestrator.runner.jobs import iter_phases
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import resolve_search

from . import fakes

#: What a trial comes to; None is undefined.
MetricOfJob = Callable[[Job], float | None]

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


def make_result_function(figure: MetricOfJob) -> Callable[[Job], TrialResult]:
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


def run_missing_trials(
    plan: Plan, workdir: Path, failures: Mapping[str, str] | None = None
) -> Plan:
    """Run what is missing of a plan, but for tracker and report; return it settled."""
    ledger, study = Ledger(workdir), plan.study.name
    for _, jobs in iter_phases(resolve_search(plan, ledger), ledger, workdir):
        for job, trial, attempt in jobs:
            ledger.record_start(trial, study, attempt)
            if job.name in (failures or {}):
                ledger.record_end(trial, study, attempt, "failed", (failures or {})[job.name])
                continue
            folder = str(job.folder.relative_to(workdir))
            ledger.record_result(trial, study, attempt, folder, fakes.write_job_result(job))
    return resolve_search(plan, ledger)
