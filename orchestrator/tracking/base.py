"""What a tracker shows people of a study's runs. The truth is in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.plan import Arm, Plan, Trial
from orchestrator.version import CodeVersion

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class TrialView:
    """What is to be seen of a trial that runs or has ended."""

    trial: Trial
    status: Status
    metrics: Mapping[str, float]  # final figures by full name
    folders: Sequence[Path]  # attempt folders, in order: curves.jsonl, config.json, responses/
    seconds: Mapping[str, float]
    data: Mapping[str, int]  # pairs, rows skipped, responses and tokens cut
    engine: Mapping[str, str] = field(default_factory=dict)  # how it was trained: prefix_sharing
    #: by key ("report/amber"): protocol, scorer, judge, n, missing, … of its figures
    how: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reason: str | None = None  # why it failed
    cut: str | None = None  # the rule of early stopping that cut it
    reused_from: str | None = None  # the study it was executed in, where that is another
    code: CodeVersion | None = None  # that executed it last; None: not noted
    began: float | None = None  # when its first attempt did, in seconds since 1970
    ended: float | None = None  # when its last attempt did


@dataclass(frozen=True, kw_only=True)
class ArmView:
    """An arm's aggregates: `shapes/chair_i`, `….sd`, `….difference`, …"""

    arm: Arm
    figures: Mapping[str, float]
    status: Status
    tags: Mapping[str, str | None] = field(default_factory=dict)  # None: is no more


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a tracker could not show."""

    reason: str
    trials: tuple[str, ...]  # by name
    study: bool = True  # whether the study's own run waits, too


class Tracker(Protocol):
    """Holds a study's runs. Every (arm, seed) has one active run, whatever happened before.

    Whatever is shown twice is there once. Times are in seconds since 1970.
    """

    address: str  # where the runs can be seen: the tracking URI, without a password

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Make the runs of the study, which began then, of its arms, and of trials that are done.

        Runs that an earlier driver left RUNNING are taken up again or ended.
        """

    def show(self, view: TrialView) -> None:
        """Bring a trial's run to what is to be seen of it; curves of one that runs are followed."""

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """End the arms' and the study's runs, as of `ended` or now; attach the report's folder."""

    def waiting(self) -> Waiting | None:
        """Return what of all that could not be shown; None: it is all there."""

    def refused(self) -> Mapping[str, str]:
        """Return what the store takes in no way, and why; all the rest is shown."""

    def compare_address(self) -> str | None:
        """Return the page that shows the arms side by side; None where there is none."""
