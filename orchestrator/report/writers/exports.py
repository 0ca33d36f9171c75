"""Export a report's figures unrounded, as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.analysis import Comparison
from orchestrator.report.formatting import verdict_label
from orchestrator.report.sections.answer import answer_sentence
from orchestrator.report.sections.notes import build_notes
from orchestrator.report.summary import ArmMetric, ArmRow, Summary

_COMPARISON_COLUMNS = (
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
                    *_arm_levels(row, factors),
                    metric,
                    summary.role(metric) or "",
                    info.unit,
                    info.goal,
                    figure.n,
                    repr(figure.mean),
                    _format_cell(figure.sd),
                    *_comparison_cells(figure.comparison),
                ]
            )
    head = [
        "arm",
        *factors,
        "metric",
        "role",
        "unit",
        "goal",
        "seeds",
        "mean",
        "sd",
        *_COMPARISON_COLUMNS,
    ]
    return format_csv(head, lines)


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
                    [row.name, *_arm_levels(row, factors), label, metric, _format_cell(value),
                     info.unit, state]
                )  # fmt: skip
    return format_csv(["arm", *factors, "seed", "metric", "value", "unit", "state"], lines)


def effects_csv(summary: Summary) -> str:
    """Return CSV with one line per main effect and interaction on a declared metric."""
    lines = [
        [
            metric,
            effect_kind,
            effect.name,
            effect.used,
            effect.combinations,
            *_comparison_cells(effect),
        ]
        for metric, effects in summary.effects.items()
        for effect_kind, group in (("main", effects.main), ("interaction", effects.interactions))
        for effect in group
    ]
    return format_csv(
        ["metric", "kind", "effect", "used", "combinations", *_COMPARISON_COLUMNS], lines
    )


def summary_to_json(summary: Summary) -> dict[str, Any]:
    """Return the study's results as plain data."""
    study = summary.plan.study
    deltas = {entry.metric: entry.smallest_difference for entry in study.declared_metrics}
    return {
        "study": study.name,
        "question": study.question,
        "answer": answer_sentence(summary),
        "baseline": dict(study.baseline),
        "primary": None if study.primary is None else study.primary.metric,
        "secondary": [entry.metric for entry in study.secondary],
        "exploratory": study.exploratory,
        "metrics": {
            name: {
                "unit": info.unit,
                "goal": info.goal,
                "role": summary.role(name),
                "smallest_difference": deltas.get(name),
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
                "seeds": {_seed_label(seed): state for seed, state in row.states.items()},
                "figures": {
                    name: _arm_metric_to_json(figure) for name, figure in row.figures.items()
                },
            }
            for row in summary.rows
        ],
        "effects": {
            metric: {
                "main": [_effect_to_json(effect) for effect in effects.main],
                "interactions": [_effect_to_json(effect) for effect in effects.interactions],
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
        "notes": build_notes(summary),
        "missing": summary.missing,
        "unreadable": [count.as_json for count in summary.unread],
    }


def comparison_to_json(comparison: Comparison | None) -> dict[str, Any] | None:
    """Return a comparison with everything that determines its verdict; None for None."""
    if comparison is None:
        return None
    contrast = comparison.contrast
    return {
        "difference": None if contrast is None else contrast.estimate,
        "interval": None
        if contrast is None or contrast.interval is None
        else list(contrast.interval),
        "se": None if contrast is None else contrast.se,
        "df": None if contrast is None else contrast.df,
        "p": None if contrast is None else contrast.p,
        "p_adjusted": comparison.p_adjusted,
        "p_equivalence_adjusted": comparison.p_equivalence_adjusted,
        "verdict": verdict_label(comparison),
        "v_seed": None if contrast is None else contrast.v_seed,
        "v_item": None if contrast is None else contrast.v_item,
        "v_res": None if contrast is None else contrast.v_res,
        "seed_share": None if contrast is None else contrast.seed_share,
        "blocked": None if contrast is None else contrast.blocked,
        "notes": [] if contrast is None else list(contrast.notes),
    }


def _arm_metric_to_json(figure: ArmMetric) -> dict[str, Any]:
    comparison = comparison_to_json(figure.comparison)
    quoted = ("difference", "interval", "p", "p_adjusted", "verdict")
    return {
        "mean": figure.mean,
        "sd": figure.sd,
        "n": figure.n,
        **{name: None if comparison is None else comparison[name] for name in quoted},
        "comparison": comparison,
        "values": {_seed_label(seed): value for seed, value in figure.values.items()},
    }


def _effect_to_json(effect: Comparison) -> dict[str, Any]:
    return {
        "effect": effect.name,
        "changes": {factor: list(levels) for factor, levels in effect.changes.items()},
        "used": effect.used,
        "combinations": effect.combinations,
        **(comparison_to_json(effect) or {}),
    }


def _comparison_cells(comparison: Comparison | None) -> list[str]:
    """Return the columns of `_COMPARISON_COLUMNS`; empty ones without a comparison."""
    entry = comparison_to_json(comparison)
    if entry is None:
        return [""] * len(_COMPARISON_COLUMNS)
    low, high = entry["interval"] or (None, None)
    values = {**entry, "low": low, "high": high}
    return [_format_cell(values[name]) for name in _COMPARISON_COLUMNS]


def _arm_levels(row: ArmRow, factors: Sequence[str]) -> list[str]:
    return [row.arm.params.get(name, "") if row.arm else "" for name in factors]


def _seed_label(seed: int | None) -> str:
    return "untrained" if seed is None else str(seed)


def _format_cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def format_csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Format a header and lines as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()
