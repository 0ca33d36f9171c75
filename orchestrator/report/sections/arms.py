"""Build the tables of arms: verdicts by metric, figures by benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.analysis import Comparison, Verdict
from orchestrator.report.formatting import (
    NO_VALUE,
    arms_title,
    correction_name,
    format_baseline,
    format_difference,
    format_difference_unit,
    format_interval,
    format_mean,
    format_number,
    format_p_value,
    format_seeds,
    format_signed,
    format_verdict,
    group_metrics,
    is_bold,
    metric_title,
    row_label,
    slugify,
)
from orchestrator.report.layout import (
    Cell,
    Column,
    RowKind,
    Table,
    TableRow,
    Tone,
    make_columns,
    text_row,
)
from orchestrator.report.summary import ArmRow, Summary

_METRICS_PER_TABLE = 6  # metrics per table; a benchmark with more has several tables
_TONES: Mapping[Verdict, Tone] = {
    Verdict.BETTER: "better",
    Verdict.BETTER_BELOW_DELTA: "better",
    Verdict.WORSE: "worse",
    Verdict.WORSE_BELOW_DELTA: "worse",
    Verdict.NO_CLEAR_DIFFERENCE: "same",
}


def verdict_table(summary: Summary, metric: str) -> Table:
    """Return a declared metric's table: difference, interval and verdict of each arm."""
    info = summary.metrics[metric]
    rows = []
    for row in summary.rows:
        comparison = row.comparison(metric)
        name = Cell(text=row_label(row), bold=is_bold(comparison))
        mean = Cell(text=format_mean(row.figures.get(metric)), bold=is_bold(comparison))
        rows.append(
            TableRow(
                cells=(name, Cell(text=format_seeds(row)), mean, *_comparison_cells(comparison)),
                kind=_row_kind(row),
            )
        )
        rows += _published_rows(summary, row, [metric], cells_after=4)
    return Table(
        name=f"arms-{slugify(metric)}",
        caption=f"{metric_title(metric, info)}, the {summary.role(metric)} metric.",
        columns=make_columns(
            arms_title(summary),
            "seeds",
            "mean ± sd",
            *_comparison_titles(summary, metric),
            text=(0, 6),
        ),
        rows=tuple(rows),
    )


def benchmark_tables(summary: Summary) -> list[Table]:
    """Return a table of arms × metrics, with differences, for each benchmark or part."""
    return [
        _benchmark_table(summary, benchmark, metrics[start : start + _METRICS_PER_TABLE], start)
        for benchmark, metrics in group_metrics(summary.metrics).items()
        for start in range(0, len(metrics), _METRICS_PER_TABLE)
    ]


def effect_table(summary: Summary, metric: str) -> Table | None:
    """Return main effects and interactions on a metric; None with fewer than two factors."""
    effects = summary.effects.get(metric)
    if effects is None or len(summary.plan.study.factors) < 2:
        return None
    info = summary.metrics[metric]
    rows = [
        text_row(
            comparison.name,
            f"{comparison.used} of {comparison.combinations}",
            *_comparison_cells(comparison),
        )
        for comparison in (*effects.main, *effects.interactions)
    ]
    return Table(
        name=f"effects-{slugify(metric)}",
        caption=f"Main effects and interactions (×) on {metric_title(metric, info)}. An effect is "
        "the mean difference over those combinations of the other factors that have both "
        "cells, an interaction over complete squares of four cells: better means that the "
        "two changes together do better than the sum of their effects.",
        columns=make_columns(
            "effect",
            "combinations",
            *_comparison_titles(summary, metric),
            text=(0, 5),
        ),
        rows=tuple(rows),
    )


def verdict_tone(comparison: Comparison) -> Tone:
    """Return the tone of a comparison's verdict. A placebo's is always "open"."""
    return "open" if comparison.placebo else _TONES.get(comparison.verdict, "open")


def _benchmark_table(summary: Summary, benchmark: str, metrics: Sequence[str], start: int) -> Table:
    rows = []
    for row in summary.rows:
        cells = [Cell(text=row_label(row)), Cell(text=format_seeds(row))]
        for metric in metrics:
            figure = row.figures.get(metric)
            bold = metric in summary.verdict_metrics and is_bold(row.comparison(metric))
            cells.append(Cell(text=format_mean(figure), below=format_difference(figure), bold=bold))
        rows.append(TableRow(cells=tuple(cells), kind=_row_kind(row)))
        rows += _published_rows(summary, row, metrics, cells_after=0)
    tuned_note = " (tuned on, not to be reported)" if benchmark.startswith("select/") else ""
    titles = [
        Column(title=metric_title(metric.removeprefix(f"{benchmark}/"), summary.metrics[metric]))
        for metric in metrics
    ]
    return Table(
        name=f"figures-{slugify(benchmark)}" + (f"-{start}" if start else ""),
        caption=f"{benchmark}{tuned_note}: mean ± sd over seeds; below it the difference from "
        f"{format_baseline(summary)} and its 95 % interval.",
        columns=(*make_columns(arms_title(summary), "seeds"), *titles),
        rows=tuple(rows),
    )


def _comparison_titles(summary: Summary, metric: str) -> tuple[str, str, str, str]:
    """Return the titles of the columns of difference, interval, p and verdict."""
    unit = format_difference_unit(summary.metrics[metric])
    return f"difference ({unit})", "95 % interval", f"p ({correction_name(summary)})", "verdict"


def _comparison_cells(comparison: Comparison | None) -> tuple[Cell, Cell, Cell, Cell]:
    """Return the cells of difference, interval, p and verdict."""
    if comparison is None:
        return Cell(text=NO_VALUE), Cell(text=NO_VALUE), Cell(text=NO_VALUE), Cell(text="")
    contrast = comparison.contrast
    return (
        Cell(text=NO_VALUE if contrast is None else format_signed(contrast.estimate)),
        Cell(text=NO_VALUE if contrast is None else format_interval(contrast.interval)),
        Cell(text=format_p_value(comparison.p_adjusted)),
        Cell(
            text=format_verdict(comparison), bold=is_bold(comparison), tone=verdict_tone(comparison)
        ),
    )


def _row_kind(row: ArmRow) -> RowKind:
    if row.arm is None:
        return "untrained"
    return "baseline" if row.arm.baseline else ""


def _published_rows(
    summary: Summary, row: ArmRow, metrics: Sequence[str], *, cells_after: int
) -> list[TableRow]:
    """Return one row per source that published figures of an arm."""
    cells = [None] if row.arm is None else [dict(cell) for cell in row.arm.cells]
    rows = []
    for entry in summary.plan.study.published:
        arm = None if entry.arm is None else dict(entry.arm)
        if arm not in cells or not set(metrics) & set(entry.values):
            continue
        figures = [
            format_number(entry.values[metric]) if metric in entry.values else NO_VALUE
            for metric in metrics
        ]
        rows.append(
            text_row(
                f"published: {entry.source}",
                "",  # seeds
                *figures,
                *[""] * cells_after,
                kind="published",
            )
        )
    return rows
