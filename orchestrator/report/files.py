"""A study's table as Markdown and CSV, written into `studies/NAME/report/`."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

from chip_core.files import write_atomically
from orchestrator.report.summary import Figure, Row, Summary

UNITS = {"percent": "%"}


def write_report(summary: Summary, folder: Path) -> list[Path]:
    """Write `report.md` and `report.csv`; return their paths."""
    files = {"report.md": markdown(summary), "report.csv": as_csv(summary)}
    for name, text in files.items():
        write_atomically(folder / name, text)
    return [folder / name for name in files]


def markdown(summary: Summary) -> str:
    """Return the study's page in Markdown."""
    study = summary.plan.study
    lines = [f"# {study.name}", ""]
    if study.question:
        lines += [study.question, ""]
    header = ["arm", "seeds", *(column_title(summary, metric) for metric in summary.metrics)]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in summary.rows:
        cells = [
            row.name + (" (baseline)" if row.arm and row.arm.baseline else ""),
            seeds_text(row),
        ]
        cells += [cell_text(row.figures.get(metric)) for metric in summary.metrics]
        lines.append(_line([cell.replace("|", "\\|") for cell in cells]))
    lines += ["", *(f"- {note}" for note in notes(summary)), ""]
    return "\n".join(lines)


def as_csv(summary: Summary) -> str:
    """Return one line for each arm, seed and metric: the values themselves."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    factors = [factor.name for factor in summary.plan.study.factors]
    writer.writerow(["arm", *factors, "seed", "metric", "value", "unit", "state"])
    for row in summary.rows:
        levels = [row.arm.params[name] if row.arm else "" for name in factors]
        for seed, state in row.states.items():
            for metric, info in summary.metrics.items():
                figure = row.figures.get(metric)
                value = figure.values.get(seed) if figure else None
                shown = "" if value is None else repr(value)
                label = "" if seed is None else seed
                writer.writerow([row.name, *levels, label, metric, shown, info.unit, state])
    return out.getvalue()


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the table as plain data."""
    study = summary.plan.study
    return {
        "study": study.name,
        "question": study.question,
        "baseline": dict(study.baseline),
        "primary": None if study.primary is None else study.primary.metric,
        "metrics": {
            name: {"unit": info.unit, "goal": info.goal} for name, info in summary.metrics.items()
        },
        "arms": [
            {
                "arm": row.name,
                "cells": [dict(cell) for cell in row.arm.cells] if row.arm else [],
                "baseline": bool(row.arm and row.arm.baseline),
                "seeds": {_seed(seed): state for seed, state in row.states.items()},
                "figures": {name: _figure(figure) for name, figure in row.figures.items()},
            }
            for row in summary.rows
        ],
        "missing": summary.missing,
    }


def column_title(summary: Summary, metric: str) -> str:
    """Return a metric's heading: its name, unit and better direction."""
    info = summary.metrics[metric]
    arrow = "↓" if info.goal == "minimize" else "↑"
    return f"{metric} {UNITS.get(info.unit, info.unit)} {arrow}"


def cell_text(figure: Figure | None) -> str:
    """Return `mean ± sd (difference [interval])`; a dash where nothing is there."""
    if figure is None:
        return "—"
    text = f"{figure.mean:.2f}"
    if figure.sd is not None:
        text += f" ± {figure.sd:.2f}"
    if figure.difference is not None:
        text += f" ({figure.difference:+.2f}"
        if figure.interval is not None:
            low, high = figure.interval
            text += f" [{low:.2f}, {high:.2f}]"
        text += ")"
    return text


def seeds_text(row: Row) -> str:
    """Return how many seeds an arm has, of how many."""
    done = sum(state == "done" for state in row.states.values())
    if row.arm is None:
        return "—" if done else "missing"
    return str(done) if done == len(row.states) else f"{done} of {len(row.states)}"


def notes(summary: Summary) -> list[str]:
    """Return what a reader of the table has to know."""
    lines = [
        "Mean ± standard deviation over seeds; with it the difference from the baseline, "
        f"{summary.plan.baseline.name}, and its 95 % interval over seeds and items. The intervals "
        "are marginal: they are not corrected for how many there are.",
    ]
    said = Counter(
        note for row in summary.rows for figure in row.figures.values() for note in figure.notes
    )
    lines += [f"{note} ({count} differences)." for note, count in said.items()]
    lines += [
        f"{arm.name}: stands for {len(arm.cells)} cells. {'; '.join(arm.reasons)}."
        for arm in summary.plan.arms
        if len(arm.cells) > 1
    ]
    lines += summary.scoring
    undefined = [
        f"{metric} of {row.name}{'' if seed is None else f', seed {seed}'}"
        for row in summary.rows
        for seed, state in row.states.items()
        for metric in summary.metrics
        if state == "done" and (metric not in row.figures or seed not in row.figures[metric].values)
    ]
    if undefined:
        lines.append(f"Undefined (nothing to divide by): {'; '.join(undefined)}.")
    if summary.missing:
        lines.append(f"Not there: {'; '.join(summary.missing)}.")
    return lines


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "mean": figure.mean,
        "sd": figure.sd,
        "n": figure.n,
        "difference": figure.difference,
        "interval": None if figure.interval is None else list(figure.interval),
        "values": {_seed(seed): value for seed, value in figure.values.items()},
    }


def _seed(seed: int | None) -> str:
    return "untrained" if seed is None else str(seed)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
