"""Define what a tracker shows of a study's runs; the ledger is the truth."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.utils.version import CodeVersion

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Place = tuple[str, str]  # a trial's arm and fingerprint


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
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: of a training that was scored on its way: step -> figures under `select`; 0: untrained
    checkpoints: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    reason: str | None = None  # why it failed
    cut: str | None = None  # the rule of early stopping that cut it
    reused_from: str | None = None  # the study it was executed in, where that is another
    code: CodeVersion | None = None  # that executed it last; None: not noted
    began: float | None = None  # when its first attempt did, in seconds since 1970
    ended: float | None = None  # when its last attempt did

    @property
    def place(self) -> Place:
        """Where it stands in its study."""
        return self.trial.arm, self.trial.fingerprint


@dataclass(frozen=True, kw_only=True)
class ArmView:
    """An arm's aggregates: `shapes/chair_i`, `….sd`, `….difference`, …"""

    arm: Arm
    figures: Mapping[str, float]
    status: Status
    tags: Mapping[str, str | None] = field(default_factory=dict)  # None: is no more


@dataclass(frozen=True, kw_only=True)
class FinalSnapshot:
    """How a run of a study ended. Times are in seconds since 1970."""

    time: float  # when it was noted
    status: Status
    ended: float | None  # when its last trial ended; None: now
    arms: tuple[ArmView, ...]


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """All that is to be seen of a study."""

    plan: Plan
    began: float | None = None  # when it was first run, in seconds since 1970; None: now
    trials: Mapping[Place, TrialView]
    ends: tuple[FinalSnapshot, ...] = ()  # how runs of it ended, in order; none: it runs
    report: Path | None = None  # its report's folder


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a tracker could not show."""

    reason: str
    trials: tuple[str, ...]  # by name
    study: bool = True  # whether the study's own run waits, too


class Tracker(ABC):
    """Brings a store's runs of a study to what is to be seen of it.

    Every (arm, seed) has one active run, whatever happened before, and whatever is shown twice is
    there once. Runs that an earlier driver left RUNNING are taken up again or ended.
    """

    address: str  # where the runs can be seen: the tracking URI, without a password
    study: StudyView | None = None  # what is to be seen

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Begin to show a study that began then, or go on with another plan of it."""
        self.bring(StudyView(plan=plan, began=began, trials={view.place: view for view in done}))

    @abstractmethod
    def confirm(self) -> None:
        """Wait for a while until what `open` began is there.

        Raises:
            UserError: the store can never be used: its address is to be mended.
        """

    def show(self, view: TrialView) -> None:
        """Show a trial as running, or as ended."""
        assert self.study is not None, "open() comes first"
        trials = {**self.study.trials, view.place: view}
        self.bring(replace(self.study, trials=trials))

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """Show the end, as of `ended` or now, with the report's folder."""
        assert self.study is not None, "open() comes first"
        end = FinalSnapshot(time=time.time(), status=status, ended=ended, arms=tuple(arms))
        self.bring(replace(self.study, ends=(end,), report=report))

    @abstractmethod
    def bring(self, study: StudyView) -> None:
        """Bring the store from whatever it holds to what is to be seen of a study."""

    @abstractmethod
    def waiting(self) -> Waiting | None:
        """Return what of all that could not be shown; None: it is all there."""

    @abstractmethod
    def refused(self) -> Mapping[str, str]:
        """Return what the store takes in no way, and why; all the rest is shown."""

    @abstractmethod
    def compare_address(self) -> str | None:
        """Return the page that shows the arms side by side; None where there is none."""
