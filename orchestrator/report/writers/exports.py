"""Export a report's figures unrounded, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.analysis import Comparison
from orchestrator.report.formatting import verdict_words
from orchestrator.report.sections.answer import answer
from orchestrator.report.sections.notes import notes
from orchestrator.report.summary import ArmRow, Figure, Summary
from orchestrator.report.unread_counts import unread_json

_COMPARED = (
    "difference", "low", "high", "se", "df", "p", "p_adjusted", "p_equivalence_adjusted", "verdict",
)  # fmt: skip


def arms_csv(summary: Summary) -> str:
    """Return CSV with one line per arm and metric: mean, difference, interval and verdict."""
    factors = [factor.name for factor in summary.plan.study.factors]
    lines = []
    for row in summary.rows:
        for metric, figure in row.figures.items():
            info = summary.metrics[metric]
            lines.append(
                [
                    row.name,
                    *_levels(row, factors),
                    metric,
                    summary.role(metric) or "",
                    info.unit,
                    info.goal,
                    figure.n,
                    repr(figure.mean),
                    _text(figure.sd),
                    *_columns(figure.comparison),
                ]
            )
    head = ["arm", *factors, "metric", "role", "unit", "goal", "seeds", "mean", "sd", *_COMPARED]
    return csv_text(head, lines)


def values_csv(summary: Summary) -> str:
    """Return CSV with one line per arm, seed and metric: the value."""
    factors = [factor.name for factor in summary.plan.study.factors]
    lines = []
    for row in summary.rows:
        for seed, state in row.states.items():
            for metric, info in summary.metrics.items():
                figure = row.figures.get(metric)
                value = figure.values.get(seed) if figure else None
                label = "" if seed is None else seed
                lines.append(
                    [row.name, *_levels(row, factors), label, metric, _text(value), info.unit,
                     state]
                )  # fmt: skip
    return csv_text(["arm", *factors, "seed", "metric", "value", "unit", "state"], lines)


def effects_csv(summary: Summary) -> str:
    """Return CSV with one line per main effect and interaction on a declared metric."""
    lines = [
        [metric, kind, found.name, found.used, found.combinations, *_columns(found)]
        for metric, effects in summary.effects.items()
        for kind, group in (("main", effects.main), ("interaction", effects.interactions))
        for found in group
    ]
    return csv_text(["metric", "kind", "effect", "used", "combinations", *_COMPARED], lines)


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the study's results as plain data."""
    study = summary.plan.study
    return {
        "study": study.name,
        "question": study.question,
        "answer": answer(summary),
        "baseline": dict(study.baseline),
        "primary": None if study.primary is None else study.primary.metric,
        "secondary": [entry.metric for entry in study.secondary],
        "exploratory": study.exploratory,
        "metrics": {
            name: {
                "unit": info.unit,
                "goal": info.goal,
                "role": summary.role(name),
                "smallest_difference": _delta(summary, name),
                "items": len(summary.compared[name].items) if name in summary.compared else None,
                "items_left_out": summary.compared[name].dropped
                if name in summary.compared
                else None,
            }
            for name, info in summary.metrics.items()
        },
        "arms": [
            {
                "arm": row.name,
                "cells": [dict(cell) for cell in row.arm.cells] if row.arm else [],
                "baseline": bool(row.arm and row.arm.baseline),
                "placebo": bool(row.arm and row.arm.placebo),
                "tuned": dict(row.arm.tuned) if row.arm else {},
                "seeds": {_seed(seed): state for seed, state in row.states.items()},
                "figures": {name: _figure(figure) for name, figure in row.figures.items()},
            }
            for row in summary.rows
        ],
        "effects": {
            metric: {
                "main": [_effect(found) for found in effects.main],
                "interactions": [_effect(found) for found in effects.interactions],
            }
            for metric, effects in summary.effects.items()
        },
        "published": [
            {
                "source": entry.source,
                "arm": None if entry.arm is None else dict(entry.arm),
                "values": dict(entry.values),
            }
            for entry in study.published
        ],
        "notes": notes(summary),
        "missing": summary.missing,
        "unreadable": unread_json(summary.unread),
    }


def comparison_json(found: Comparison | None) -> dict[str, Any] | None:
    """Return a comparison with everything that determines its verdict; None for None."""
    if found is None:
        return None
    one = found.contrast
    return {
        "difference": None if one is None else one.estimate,
        "interval": None if one is None or one.interval is None else list(one.interval),
        "se": None if one is None else one.se,
        "df": None if one is None else one.df,
        "p": None if one is None else one.p,
        "p_adjusted": found.p_adjusted,
        "p_equivalence_adjusted": found.p_equivalence_adjusted,
        "verdict": verdict_words(found),
        "v_seed": None if one is None else one.v_seed,
        "v_item": None if one is None else one.v_item,
        "v_res": None if one is None else one.v_res,
        "seed_share": None if one is None else one.seed_share,
        "blocked": None if one is None else one.blocked,
        "notes": [] if one is None else list(one.notes),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    found = figure.comparison
    return {
        "mean": figure.mean,
        "sd": figure.sd,
        "n": figure.n,
        "difference": figure.difference,
        "interval": None if figure.interval is None else list(figure.interval),
        "p": None if found is None or found.contrast is None else found.contrast.p,
        "p_adjusted": None if found is None else found.p_adjusted,
        "verdict": None if found is None else verdict_words(found),
        "comparison": comparison_json(found),
        "values": {_seed(seed): value for seed, value in figure.values.items()},
    }


def _effect(found: Comparison) -> dict[str, Any]:
    return {
        "effect": found.name,
        "changes": {factor: list(levels) for factor, levels in found.changes.items()},
        "used": found.used,
        "combinations": found.combinations,
        **(comparison_json(found) or {}),
    }


def _delta(summary: Summary, metric: str) -> float | None:
    declared = {
        entry.metric: entry.smallest_difference for entry in summary.plan.study.declared_metrics
    }
    return declared.get(metric)


def _columns(found: Comparison | None) -> list[str]:
    """Return the columns of `_COMPARED`; empty ones without a comparison."""
    entry = comparison_json(found)
    if entry is None:
        return [""] * len(_COMPARED)
    low, high = entry["interval"] or (None, None)
    values = {**entry, "low": low, "high": high}
    return [_text(values[name]) for name in _COMPARED]


def _levels(row: ArmRow, factors: Sequence[str]) -> list[str]:
    return [row.arm.params.get(name, "") if row.arm else "" for name in factors]


def _seed(seed: int | None) -> str:
    return "untrained" if seed is None else str(seed)


def _text(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def csv_text(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Format a header and lines as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return out.getvalue()
