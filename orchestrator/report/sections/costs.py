"""Build the table of each arm's cost by phase."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan.plan import Plan
from orchestrator.report.layout import Table, columns, text_row
from orchestrator.state.ledger import Ledger


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
    def each(self) -> float:
        """Seconds per trial."""
        return self.train + self.answer + self.score + self.other

    @property
    def whole(self) -> float:
        """Seconds of all trials of the arm."""
        return self.each * self.trials


def arm_costs(plan: Plan, ledger: Ledger) -> list[ArmCost]:
    """Return the cost of each arm that has run."""
    found = []
    for arm in plan.arms:
        spent = [
            ledger[trial.fingerprint].seconds
            for trial in arm.trials
            if ledger[trial.fingerprint].seconds
        ]
        if spent:
            found.append(
                ArmCost(
                    name=arm.name,
                    trials=len(spent),
                    train=_mean(spent, "train"),
                    answer=_mean(spent, "answer"),
                    score=_mean(spent, "score"),
                    other=_mean(spent, "other"),
                )
            )
    return found


def cost_table(found: Sequence[ArmCost]) -> Table:
    """Return the table of costs."""
    return Table(
        name="cost",
        caption="Seconds of a trial, mean over seeds, on the machines that ran them: compare arms "
        "only where the machine and its load were the same.",
        columns=columns(
            "arm", "trials", "training", "answers", "scoring", "other", "a trial", "all trials"
        ),
        rows=tuple(
            text_row(
                cost.name,
                str(cost.trials),
                *(
                    f"{value:,.1f}"
                    for value in (
                        cost.train,
                        cost.answer,
                        cost.score,
                        cost.other,
                        cost.each,
                        cost.whole,
                    )
                ),
            )
            for cost in found
        ),
    )


def _mean(spent: Sequence[Mapping[str, float]], kind: str) -> float:
    return statistics.fmean(
        sum(value for phase, value in seconds.items() if _sort(phase) == kind) for seconds in spent
    )


def _sort(phase: str) -> str:
    for kind in ("answer", "score"):
        if phase.startswith(kind):
            return kind
    return "train" if phase == "train" else "other"
