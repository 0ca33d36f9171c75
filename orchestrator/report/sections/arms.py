"""Build the tables of arms: verdicts by metric, figures by benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.analysis import Comparison, Verdict
from orchestrator.report.formatting import (
    NOTHING,
    arms_title,
    baseline_text,
    correction,
    difference_text,
    interval_text,
    is_bold,
    mean_text,
    metric_groups,
    metric_title,
    p_text,
    plain,
    points_text,
    row_name,
    seeds_text,
    signed,
    slug,
    verdict_text,
)
from orchestrator.report.layout import (
    Cell,
    Column,
    RowKind,
    Table,
    TableRow,
    Tone,
    columns,
    text_row,
)
from orchestrator.report.summary import ArmRow, Summary

_ABREAST = 6  # metrics per table; a benchmark with more has several tables
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
        figure = row.figures.get(metric)
        found = None if figure is None else figure.comparison
        name = Cell(text=row_name(row), bold=is_bold(found))
        mean = Cell(text=mean_text(figure), bold=is_bold(found))
        rows.append(
            TableRow(
                cells=(name, Cell(text=seeds_text(row)), mean, *_compared(found)), kind=_kind(row)
            )
        )
        rows += _published(summary, row, [metric], before=1, after=4)
    return Table(
        name=f"arms-{slug(metric)}",
        caption=f"{metric_title(metric, info)}, the {summary.role(metric)} metric.",
        columns=columns(
            arms_title(summary),
            "seeds",
            "mean ± sd",
            f"difference ({points_text(info)})",
            "95 % interval",
            f"p ({correction(summary)})",
            "verdict",
            text=(0, 6),
        ),
        rows=tuple(rows),
    )


def benchmark_tables(summary: Summary) -> list[Table]:
    """Return a table of arms × metrics, with differences, for each benchmark or part."""
    return [
        _benchmark_table(summary, benchmark, metrics[start : start + _ABREAST], start)
        for benchmark, metrics in metric_groups(summary.metrics).items()
        for start in range(0, len(metrics), _ABREAST)
    ]


def effect_table(summary: Summary, metric: str) -> Table | None:
    """Return main effects and interactions on a metric; None with fewer than two factors."""
    effects = summary.effects.get(metric)
    if effects is None or len(summary.plan.study.factors) < 2:
        return None
    info = summary.metrics[metric]
    rows = [
        text_row(found.name, f"{found.used} of {found.combinations}", *_compared(found))
        for found in (*effects.main, *effects.interactions)
    ]
    return Table(
        name=f"effects-{slug(metric)}",
        caption=f"Main effects and interactions (×) on {metric_title(metric, info)}. An effect is "
        "the mean difference over those combinations of the other factors that have both cells, "
        "an interaction over complete squares of four cells: better is what does better together "
        "than the two effects would add up to.",
        columns=columns(
            "effect",
            "combinations",
            f"difference ({points_text(info)})",
            "95 % interval",
            f"p ({correction(summary)})",
            "verdict",
            text=(0, 5),
        ),
        rows=tuple(rows),
    )


def tone(found: Comparison) -> Tone:
    """Return the tone of a comparison's verdict. A placebo's is always "open"."""
    return "open" if found.placebo else _TONES.get(found.verdict, "open")


def _benchmark_table(summary: Summary, benchmark: str, metrics: Sequence[str], start: int) -> Table:
    rows = []
    for row in summary.rows:
        cells = [Cell(text=row_name(row)), Cell(text=seeds_text(row))]
        for metric in metrics:
            figure = row.figures.get(metric)
            bold = figure is not None and metric in summary.decided and is_bold(figure.comparison)
            cells.append(Cell(text=mean_text(figure), below=difference_text(figure), bold=bold))
        rows.append(TableRow(cells=tuple(cells), kind=_kind(row)))
        rows += _published(summary, row, metrics, before=1, after=0)
    tuned = " (tuned on, not for quoting)" if benchmark.startswith("select/") else ""
    titles = [
        Column(title=metric_title(metric.removeprefix(f"{benchmark}/"), summary.metrics[metric]))
        for metric in metrics
    ]
    return Table(
        name=f"figures-{slug(benchmark)}" + (f"-{start}" if start else ""),
        caption=f"{benchmark}{tuned}: mean ± sd over seeds; below it the difference from "
        f"{baseline_text(summary)} and its 95 % interval.",
        columns=(*columns(arms_title(summary), "seeds"), *titles),
        rows=tuple(rows),
    )


def _compared(found: Comparison | None) -> tuple[Cell, Cell, Cell, Cell]:
    """Return the cells of difference, interval, p and verdict."""
    if found is None:
        return Cell(text=NOTHING), Cell(text=NOTHING), Cell(text=NOTHING), Cell(text="")
    estimate = None if found.contrast is None else found.contrast
    return (
        Cell(text=NOTHING if estimate is None else signed(estimate.estimate)),
        Cell(text=NOTHING if estimate is None else interval_text(estimate.interval)),
        Cell(text=p_text(found.p_adjusted)),
        Cell(text=verdict_text(found), bold=is_bold(found), tone=tone(found)),
    )


def _kind(row: ArmRow) -> RowKind:
    if row.arm is None:
        return "untrained"
    return "baseline" if row.arm.baseline else ""


def _published(
    summary: Summary, row: ArmRow, metrics: Sequence[str], *, before: int, after: int
) -> list[TableRow]:
    """Return one row per source that published figures of an arm."""
    cells = [None] if row.arm is None else [dict(cell) for cell in row.arm.cells]
    lines = []
    for entry in summary.plan.study.published:
        arm = None if entry.arm is None else dict(entry.arm)
        if arm not in cells or not set(metrics) & set(entry.values):
            continue
        figures = [
            plain(entry.values[metric]) if metric in entry.values else NOTHING for metric in metrics
        ]
        lines.append(
            text_row(
                f"published: {entry.source}",
                *[""] * before,
                *figures,
                *[""] * after,
                kind="published",
            )
        )
    return lines
