"""Read training curves by arm: mean and range over seeds.

T steps that all seeds of an arm have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chip_core.results import CURVES
from chip_core.utils.errors import warn_once
from chip_core.utils.files import read_records
from orchestrator.analysis.values import Array
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.integrity import is_changed
from orchestrator.state.ledger import Ledger

#: What is drawn of a training, where it is there: key in curves.jsonl -> heading.
SHOWN: Mapping[str, str] = {
    "loss": "loss",
    "reward/margin": "reward margin",
    "reward/accuracy": "reward accuracy",
    "grad_norm": "gradient norm",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """One figure of an arm's trainings."""

    arm: str
    seeds: int
    steps: Array  # (T,)
    mean: Array  # (T,)
    low: Array  # (T,), the lowest seed's
    high: Array  # (T,)


def training_curves(plan: Plan, ledger: Ledger, storage: Path) -> dict[str, list[Band]]:
    """Return figure -> a band for each arm that has it, in the plan's order."""
    found: dict[str, list[Band]] = {name: [] for name in SHOWN}
    for arm in plan.arms:
        curves = [_curve(trial, ledger, storage) for trial in arm.trials]
        for name, bands in found.items():
            band = _band(arm.name, [curve[name] for curve in curves if curve.get(name)])
            bands += [] if band is None else [band]
    return {name: bands for name, bands in found.items() if bands}


def _curve(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, dict[int, float]]:
    """Return figure -> step -> value; of a step that two attempts have, the later's."""
    record = ledger[trial.fingerprint]
    model = record.model
    if model is None:
        return {}
    found: dict[str, dict[int, float]] = {name: {} for name in SHOWN}
    trained = storage / model
    noted = [one.files.get(CURVES) for one in record.history.values() if one.folder == model]
    if any(is_changed(trained / CURVES, sha256) for sha256 in noted):
        warn_once(
            f"{trial.name}: {trained / CURVES} is not as it was written: its training curve is "
            "drawn from what is left of it"
        )
    # A training that went on from a checkpoint has its beginning in an earlier attempt.
    attempts = sorted(trained.parent.glob("attempt-*"), key=_number)
    for folder in attempts[: attempts.index(trained) + 1] if trained in attempts else []:
        for point in read_records(folder / CURVES):
            for name, steps in found.items():
                with suppress(KeyError, ValueError, TypeError):  # of a version without checksums
                    steps[int(point["step"])] = float(point["figures"][name])
    return found


def _number(folder: Path) -> int:
    number = folder.name.removeprefix("attempt-")
    return int(number) if number.isdigit() else 0


def _band(arm: str, curves: Sequence[Mapping[int, float]]) -> Band | None:
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if len(steps) < 2:
        return None
    table = np.array([[curve[step] for step in steps] for curve in curves])
    return Band(
        arm=arm,
        seeds=len(curves),
        steps=np.array(steps, dtype=np.float64),
        mean=table.mean(axis=0),
        low=table.min(axis=0),
        high=table.max(axis=0),
    )
