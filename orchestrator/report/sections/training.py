"""Read training curves by arm: mean and range over seeds.

T: number of steps that all seeds of an arm have.
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
from orchestrator.report.layout import Table, TextBlock, make_columns, text_row
from orchestrator.report.summary import Summary
from orchestrator.state.integrity import is_file_changed
from orchestrator.state.ledger import Ledger

#: The training figures that are drawn: key in curves.jsonl -> heading.
CURVE_TITLES: Mapping[str, str] = {
    "loss": "loss",
    "reward/margin": "reward margin",
    "reward/accuracy": "reward accuracy",
    "grad_norm": "gradient norm",
}


_MAX_METRICS = 4  # figures under `select` that are drawn by step


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """One figure of an arm's trainings, over the seeds."""

    arm: str
    seeds: int
    steps: Array  # (T,)
    mean: Array  # (T,)
    low: Array  # (T,), minimum over seeds
    high: Array  # (T,)


def load_training_curves(plan: Plan, ledger: Ledger, storage: Path) -> dict[str, list[Band]]:
    """Return figure -> bands of the arms that have it, in the plan's order."""
    bands_by_figure: dict[str, list[Band]] = {name: [] for name in CURVE_TITLES}
    for arm in plan.arms:
        curves = [_read_curve(trial, ledger, storage) for trial in arm.trials]
        for name, bands in bands_by_figure.items():
            band = _make_band(arm.name, [curve[name] for curve in curves if curve.get(name)])
            bands += [] if band is None else [band]
    return {name: bands for name, bands in bands_by_figure.items() if bands}


def _read_curve(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, dict[int, float]]:
    """Return figure -> step -> value. If two attempts have a step, the later one counts."""
    record = ledger[trial.fingerprint]
    model = record.model
    if model is None:
        return {}
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVE_TITLES}
    model_folder = storage / model
    hashes = [
        attempt.files.get(CURVES) for attempt in record.history.values() if attempt.folder == model
    ]
    if any(is_file_changed(model_folder / CURVES, sha256) for sha256 in hashes):
        warn_once(
            f"{trial.name}: {model_folder / CURVES} has changed since it was written: its "
            "training curve is drawn from the intact part"
        )
    # The first steps of a resumed training are in an earlier attempt.
    attempts = sorted(model_folder.parent.glob("attempt-*"), key=_attempt_number)
    for folder in attempts[: attempts.index(model_folder) + 1] if model_folder in attempts else []:
        for point in read_records(folder / CURVES):
            for name, steps in curves.items():
                with suppress(KeyError, ValueError, TypeError):  # broken lines
                    steps[int(point["step"])] = float(point["figures"][name])
    return curves


def picked_checkpoint_blocks(plan: Plan, ledger: Ledger) -> list[Table | TextBlock]:
    """Return the table of picked checkpoints and the reasons; empty if none was picked."""
    rows = [
        text_row(
            trial.name,
            f"{picked['step']} of {picked['steps']}"
            + (" of the last round" if trial.config.pairs.rounds > 1 else ""),
            str(picked["why"]),
        )
        for arm in plan.arms
        for trial in arm.trials
        if trial.config.training.score_at and (picked := ledger[trial.fingerprint].picked)
    ]
    if not rows:
        return []
    return [
        TextBlock(
            lines=(
                "Trainings were scored on `select` at intermediate steps, and a rule declared in "
                "advance picked the model that answered `report`. No figure of `report` existed "
                "at that time.",
            )
        ),
        Table(
            name="picked",
            caption="The checkpoint of each trial's model.",
            columns=make_columns("trial", "after step", "why", text=(0, 2)),
            rows=tuple(rows),
        ),
    ]


def load_checkpoint_curves(summary: Summary, ledger: Ledger) -> dict[str, list[Band]]:
    """Return figure under `select` -> bands over the checkpoints of the arms that scored them.

    Values are in the shown unit. Step 0 is the untrained model.
    """
    plan = summary.plan
    metrics = _picking_metrics(plan)
    bands_by_metric: dict[str, list[Band]] = {
        metric: [] for metric in metrics if metric in summary.metrics
    }
    untrained = summary.rows[0].figures
    for metric, bands in bands_by_metric.items():
        scale = summary.scales[metric]
        start = {0: untrained[metric].mean} if metric in untrained else {}
        for arm in plan.arms:
            points = [ledger[trial.fingerprint].picked.get("points", ()) for trial in arm.trials]
            curves = [
                {
                    point["step"]: scale * point["figures"][metric]
                    for point in trial_points
                    if point["step"] > 0 and metric in point["figures"]
                }
                for trial_points in points
            ]
            band = _make_band(arm.name, [{**start, **curve} for curve in curves if curve])
            bands += [] if band is None else [band]
    return {metric: bands for metric, bands in bands_by_metric.items() if bands}


def _picking_metrics(plan: Plan) -> list[str]:
    """Return metrics of the picking rules, then the declared metrics under `select`."""
    metrics: dict[str, None] = {}
    for arm in plan.arms:
        settings = arm.trials[0].config.training
        if settings.pick.metric is not None:
            metrics[settings.pick.metric] = None
        if settings.pick.constraint is not None:
            metrics[settings.pick.constraint.metric] = None
    declared = (f"select/{entry.metric}" for entry in plan.study.declared_metrics)
    return list(dict.fromkeys([*metrics, *declared]))[:_MAX_METRICS]


def _attempt_number(folder: Path) -> int:
    number = folder.name.removeprefix("attempt-")
    return int(number) if number.isdigit() else 0


def _make_band(arm: str, curves: Sequence[Mapping[int, float]]) -> Band | None:
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
