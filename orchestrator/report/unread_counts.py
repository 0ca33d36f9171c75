"""Count answers and judges' replies that could not be read, by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.ledger import Ledger

_EXAMPLES = 3  # of an arm on a benchmark


@dataclass(frozen=True, kw_only=True)
class UnreadCount:
    """What could not be read of an arm's answers to a benchmark."""

    arm: str
    benchmark: str  # "select/NAME" of questions that settings are chosen by
    trials: int  # that were scored
    scored: int  # answers, over the trials
    answers: int  # of these, those that could not be read
    replies: int  # judges' replies that could not be read
    examples: tuple[tuple[str, Mapping[str, str]], ...]  # trial, and item, text and source

    @property
    def share(self) -> float:
        """Answers that could not be read, in percent."""
        return 100 * self.answers / self.scored if self.scored else 0.0


def unread_counts(plan: Plan, ledger: Ledger, *, untrained: str) -> list[UnreadCount]:
    """Return what could not be read, of every benchmark of which an arm has any.

    All its arms are listed then: what matters is whether they differ. Trials that were scored by a
    version that did not count have none.

    Args:
        plan: the study's plan.
        ledger: what has been run.
        untrained: what the untrained model is called.
    """
    arms = [(untrained, [plan.base]), *((arm.name, list(arm.trials)) for arm in plan.arms)]
    found = [
        count
        for key in plan.base.evaluations
        for name, trials in arms
        if (count := _count(name, key, trials, ledger)) is not None
    ]
    shown = {count.benchmark for count in found if count.answers or count.replies}
    return [count for count in found if count.benchmark in shown]


def unread_json(found: Sequence[UnreadCount]) -> list[dict[str, Any]]:
    """Return the counts and examples as plain data."""
    return [
        {
            "benchmark": count.benchmark,
            "arm": count.arm,
            "trials": count.trials,
            "scored": count.scored,
            "answers": count.answers,
            "replies": count.replies,
            "examples": [{"trial": trial, **example} for trial, example in count.examples],
        }
        for count in found
    ]


def _count(arm: str, key: str, trials: list[Trial], ledger: Ledger) -> UnreadCount | None:
    hows = []
    for trial in trials:
        scored = ledger[trial.fingerprint].evaluations.get(trial.evaluations.get(key, ""))
        if scored is not None:
            hows.append((trial.name, scored.evaluation.metadata))
    if not hows:
        return None
    unread = [(name, how["unreadable"]) for name, how in hows if "unreadable" in how]
    examples = [(name, example) for name, one in unread for example in one["examples"]]
    return UnreadCount(
        arm=arm,
        benchmark=key.removeprefix("report/"),
        trials=len(hows),
        scored=sum(how.get("n", 0) for _, how in hows),
        answers=sum(one["answers"] for _, one in unread),
        replies=sum(one["replies"] for _, one in unread),
        examples=tuple(examples[:_EXAMPLES]),
    )
