"""Count answers and judges' replies that could not be read, by arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.ledger import Ledger

_MAX_EXAMPLES = 3  # per arm and benchmark


@dataclass(frozen=True, kw_only=True)
class UnreadCount:
    """The unreadable answers and replies of an arm on a benchmark."""

    benchmark: str  # "select/NAME" under `select`
    arm: str
    trials: int  # number of scored trials
    scored: int  # number of answers over the trials
    answers: int  # of these, unreadable ones
    replies: int  # unreadable judges' replies
    examples: tuple[tuple[str, Mapping[str, str]], ...]  # (trial, {item, text, source})

    @property
    def share(self) -> float:
        """Share of unreadable answers, in percent."""
        return 100 * self.answers / self.scored if self.scored else 0.0

    @property
    def as_json(self) -> dict[str, Any]:
        """The counts and examples as plain data."""
        examples = [{"trial": trial, **example} for trial, example in self.examples]
        return {**asdict(self), "examples": examples}


def count_unread(plan: Plan, ledger: Ledger, *, untrained: str) -> list[UnreadCount]:
    """Count unreadable answers and replies for each benchmark where an arm has any.

    For such a benchmark all arms are listed, since it matters whether they differ. Trials that were
    scored by a version without the count have none.

    Args:
        plan: the study's plan.
        ledger: the ledger.
        untrained: name of the untrained model.
    """
    arms = [(untrained, [plan.base]), *((arm.name, list(arm.trials)) for arm in plan.arms)]
    counts = [
        count
        for key in plan.base.evaluations
        for name, trials in arms
        if (count := _count_arm(name, key, trials, ledger)) is not None
    ]
    benchmarks = {count.benchmark for count in counts if count.answers or count.replies}
    return [count for count in counts if count.benchmark in benchmarks]


def _count_arm(arm: str, key: str, trials: list[Trial], ledger: Ledger) -> UnreadCount | None:
    metadata = []
    for trial in trials:
        scored = ledger[trial.fingerprint].evaluations.get(trial.evaluations.get(key, ""))
        if scored is not None:
            metadata.append((trial.name, scored.evaluation.metadata))
    if not metadata:
        return None
    unread = [(name, entry["unreadable"]) for name, entry in metadata if "unreadable" in entry]
    examples = [
        (name, example) for name, unreadable in unread for example in unreadable["examples"]
    ]
    return UnreadCount(
        arm=arm,
        benchmark=key.removeprefix("report/"),
        trials=len(metadata),
        scored=sum(entry.get("n", 0) for _, entry in metadata),
        answers=sum(unreadable["answers"] for _, unreadable in unread),
        replies=sum(unreadable["replies"] for _, unreadable in unread),
        examples=tuple(examples[:_MAX_EXAMPLES]),
    )
