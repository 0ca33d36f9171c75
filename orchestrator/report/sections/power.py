"""Build the section on the power of more seeds."""

from __future__ import annotations

from orchestrator.analysis import Comparison, Contrast, Verdict, detectable_difference, seeds_needed
from orchestrator.report.formatting import counted, plain, points_text
from orchestrator.report.layout import Table, TextBlock, columns, text_row
from orchestrator.report.summary import Summary

_LOOKED_AT = (3, 5, 10, 20)  # seeds
_OPEN = (Verdict.TOO_FEW_SEEDS, Verdict.TOO_FEW_ITEMS)


def power_blocks(summary: Summary) -> list[Table | TextBlock]:
    """Return the power on the primary metric by number of seeds; empty without seed variances."""
    primary = summary.plan.study.primary
    if primary is None or primary.metric not in summary.compared:
        return []
    found = testable(summary, primary.metric)
    if not found:
        return []
    unit = points_text(summary.metrics[primary.metric])
    family = len(found)
    contrasts = [contrast for _, contrast in found]
    now = round(min(contrast.seeds for contrast in contrasts))
    rows = []
    for seeds in sorted({max(now, 2), *(k for k in _LOOKED_AT if k > now)}):
        reach = [detectable_difference(one, seeds, family=family) for one in contrasts]
        label = f"{seeds} (now)" if seeds == now else str(seeds)
        rows.append(text_row(label, plain(min(reach)), plain(max(reach))))
    units = contrasts[0].units
    items = f" and {counted(units, 'item')}" if units > 1 else ""
    blocks: list[Table | TextBlock] = [
        TextBlock(
            lines=(
                f"With {counted(max(now, 2), 'seed')}{items} a difference of "
                f"{rows[0].cells[1].text} to {rows[0].cells[2].text} {unit} on {primary.metric}, "
                "by arm, is found in four of five studies. This takes today's variances as true: "
                "it plans the next run and proves nothing.",
            )
        ),
        Table(
            name="power",
            caption=f"The smallest difference on {primary.metric} that is found with 80 % power "
            f"at a corrected level of 5 % ({counted(family, 'comparison')}), by seeds of each arm.",
            columns=columns("seeds", f"easiest arm ({unit})", f"hardest arm ({unit})"),
            rows=tuple(rows),
        ),
    ]
    delta = primary.smallest_difference
    open_arms = [(entry, one) for entry, one in found if entry.verdict in _OPEN]
    if delta is not None and open_arms:
        blocks.append(
            Table(
                name="seeds-needed",
                caption=f"Seeds of each arm that would find a difference of δ = {plain(delta)} "
                f"{unit}, for the arms without a clear answer; in brackets the range that an "
                "uncertain seed variance leaves.",
                columns=columns("arm", "seeds needed", text=(0, 1)),
                rows=tuple(
                    text_row(entry.name, seeds_needed(one, delta, family=family).text)
                    for entry, one in open_arms
                ),
            )
        )
    return blocks


def testable(summary: Summary, metric: str) -> list[tuple[Comparison, Contrast]]:
    """Return the arms' comparisons with a known seed variance, without a placebo."""
    found = []
    for row in summary.rows:
        figure = row.figures.get(metric)
        entry = None if figure is None else figure.comparison
        one = None if entry is None else entry.contrast
        if entry is None or one is None or entry.placebo:
            continue
        if entry.p_adjusted is not None:
            found.append((entry, one))
    return found
