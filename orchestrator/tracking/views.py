"""Define what MLflow is to show of a study's runs. The ledger is authoritative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.utils.version import CodeVersion

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
TrialKey = tuple[str, str]  # a trial's arm and fingerprint


@dataclass(frozen=True, kw_only=True)
class TrialView:
    """What is shown of a trial that runs or has ended."""

    trial: Trial
    status: Status
    metrics: Mapping[str, float]  # final figures by full name
    folders: Sequence[Path]  # attempt folders, in order: curves.jsonl, config.json, responses/
    seconds: Mapping[str, float]
    data: Mapping[str, int]  # pairs, skipped rows, cut responses and tokens
    engine: Mapping[str, str] = field(default_factory=dict)  # such as prefix_sharing
    #: by key ("report/amber"): protocol, scorer, judge, n, missing, … of its figures
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: of a training that was scored during training: step -> figures under `select`; 0: untrained
    checkpoints: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    reason: str | None = None  # why it failed
    cut: str | None = None  # the rule of early stopping that cut it
    reused_from: str | None = None  # the study that executed it, if another one
    code: CodeVersion | None = None  # code of its last execution; None: not recorded
    began: float | None = None  # of its first attempt, in seconds since 1970
    ended: float | None = None  # of its last attempt

    @property
    def key(self) -> TrialKey:
        """Its key in the study: arm and fingerprint."""
        return self.trial.arm, self.trial.fingerprint


@dataclass(frozen=True, kw_only=True)
class ArmView:
    """An arm's aggregates: `shapes/chair_i`, `….sd`, `….difference`, …"""

    arm: Arm
    figures: Mapping[str, float]
    status: Status
    tags: Mapping[str, str | None] = field(default_factory=dict)  # None: to be removed


@dataclass(frozen=True, kw_only=True)
class FinalSnapshot:
    """How a run of a study ended. Times are in seconds since 1970."""

    time: float  # when it was recorded
    status: Status
    ended: float | None  # end of its last trial; None: now
    arms: tuple[ArmView, ...]


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """All that is shown of a study."""

    plan: Plan
    began: float | None = None  # of its first run, in seconds since 1970; None: now
    trials: Mapping[TrialKey, TrialView]
    ends: tuple[FinalSnapshot, ...] = ()  # ends of its runs, in order; empty: it is running
    report: Path | None = None  # folder of its report


@dataclass(frozen=True, kw_only=True)
class PendingRuns:
    """What could not be shown yet."""

    reason: str
    trials: tuple[str, ...]  # names of trials
    study: bool = True  # whether the study's own run is not shown either


@dataclass(frozen=True, kw_only=True)
class TrackingState:
    """What became of a study in a store."""

    pending: PendingRuns | None  # None: everything is shown but for what is refused
    refused: Mapping[str, str]  # what the store rejects, and why; everything else is shown
    compare: str | None  # address of the page that compares the arms, if there is one
