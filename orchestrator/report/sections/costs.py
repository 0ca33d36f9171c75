"""Build the table of each arm's cost by phase."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan.plan import Plan
from orchestrator.report.layout import Table, make_columns, text_row
from orchestrator.state.ledger import Ledger

_PHASE_KINDS = ("train", "answer", "score", "other")


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """One arm's trials, in seconds on the machines that ran them."""

    name: str
    trials: int
    train: float  # mean per trial, like the three below
    answer: float
    score: float  # for trials of an earlier version it includes answers
    other: float  # loading, checking data

    @property
    def per_trial(self) -> float:
        """Seconds per trial."""
        return self.train + self.answer + self.score + self.other

    @property
    def total(self) -> float:
        """Seconds of all trials of the arm."""
        return self.per_trial * self.trials


def arm_costs(plan: Plan, ledger: Ledger) -> list[ArmCost]:
    """Return the cost of each arm that has run."""
    costs = []
    for arm in plan.arms:
        seconds = [
            ledger[trial.fingerprint].seconds
            for trial in arm.trials
            if ledger[trial.fingerprint].seconds
        ]
        if seconds:
            costs.append(
                ArmCost(
                    name=arm.name,
                    trials=len(seconds),
                    **{kind: _mean_seconds(seconds, kind) for kind in _PHASE_KINDS},
                )
            )
    return costs


def cost_table(costs: Sequence[ArmCost]) -> Table:
    """Return the table of costs."""
    return Table(
        name="cost",
        caption="Seconds of a trial, mean over seeds, on the machines that ran them: compare "
        "arms only if the machine and its load were the same.",
        columns=make_columns(
            "arm", "trials", "training", "answers", "scoring", "other", "a trial", "all trials"
        ),
        rows=tuple(
            text_row(
                cost.name,
                str(cost.trials),
                *(f"{getattr(cost, kind):,.1f}" for kind in _PHASE_KINDS),
                f"{cost.per_trial:,.1f}",
                f"{cost.total:,.1f}",
            )
            for cost in costs
        ),
    )


def _mean_seconds(trial_seconds: Sequence[Mapping[str, float]], kind: str) -> float:
    return statistics.fmean(
        sum(value for phase, value in seconds.items() if _phase_kind(phase) == kind)
        for seconds in trial_seconds
    )


def _phase_kind(phase: str) -> str:
    if phase == "train":
        return phase
    return next((kind for kind in ("answer", "score") if phase.startswith(kind)), "other")
