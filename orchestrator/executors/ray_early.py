"""Which running trial is cut, by Tune's schedulers, told what workers write of their progress.

They are asked directly, not by `tune.report`: reports pass from Train to Tune by a process of their
own, and stand still where one comes while a trial's function returns (Ray 2.60; ray_worker.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from chip_core.results import Progress
from orchestrator.executors.base import Job
from orchestrator.study_early import EarlyStopping

#: How far a training is, of 100: trainings of different lengths are compared at equal shares.
_PERCENT = "percent"


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A trial as a scheduler knows it, in place of Tune's own."""

    trial_id: str


class Referee:
    """Says which job of a run is to be cut."""

    def __init__(self, rule: EarlyStopping) -> None:
        """No job is known yet."""
        self._rule = rule
        self._scheduler: Any
        settings = {
            "time_attr": _PERCENT,
            "metric": rule.metric,
            "mode": "min" if rule.goal == "minimize" else "max",
            "grace_period": 100 * rule.grace,
        }
        if rule.method == "asha":
            self._scheduler = ASHAScheduler(
                **settings, max_t=100, reduction_factor=rule.factor, stop_last_trials=False
            )
        else:
            self._scheduler = MedianStoppingRule(
                **settings,
                min_samples_required=rule.others,
                min_time_slice=math.inf,  # nobody is paused for others
            )
        self._known: dict[str, _Known] = {}  # by fingerprint: attempts of one trial are one
        self._cut: set[str] = set()

    def verdict(self, job: Job, progress: Progress) -> str | None:
        """Take a job's progress; return why it is cut, where it is to be."""
        metric = self._rule.metric
        if progress.phase != "train" or metric not in progress.figures or progress.total < 1:
            return None
        mark = job.id.rpartition("-")[0]
        if mark not in self._known:
            self._known[mark] = _Known(trial_id=mark)
            self._scheduler.on_trial_add(None, self._known[mark])
        if mark in self._cut:
            return None
        figure = progress.figures[metric]
        result = {_PERCENT: 100 * progress.done / progress.total, metric: figure}
        decision = self._scheduler.on_trial_result(None, self._known[mark], result)
        ended = progress.done >= progress.total
        if decision != TrialScheduler.STOP or ended or not job.may_be_cut:
            return None
        self._cut.add(mark)
        return (
            f"cut by early stopping ({self._rule.words}) at step {progress.done} of "
            f"{progress.total}, {metric} {figure:.4g}"
        )
