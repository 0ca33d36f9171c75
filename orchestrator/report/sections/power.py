"""Build the section on the power of more seeds."""

from __future__ import annotations

from orchestrator.analysis import Comparison, Contrast, Verdict, detectable_difference, seeds_needed
from orchestrator.report.formatting import format_count, format_difference_unit, format_number
from orchestrator.report.layout import Table, TextBlock, make_columns, text_row
from orchestrator.report.summary import Summary

_SEED_COUNTS = (3, 5, 10, 20)  # seeds
_INCONCLUSIVE = (Verdict.TOO_FEW_SEEDS, Verdict.TOO_FEW_ITEMS)


def power_blocks(summary: Summary) -> list[Table | TextBlock]:
    """Return the power on the primary metric by number of seeds; empty without seed variances."""
    primary = summary.plan.study.primary
    if primary is None or primary.metric not in summary.compared:
        return []
    comparisons = testable_comparisons(summary, primary.metric)
    if not comparisons:
        return []
    unit = format_difference_unit(summary.metrics[primary.metric])
    family = len(comparisons)
    contrasts = [contrast for _, contrast in comparisons]
    current_seeds = round(min(contrast.seeds for contrast in contrasts))
    rows = []
    for seeds in sorted({max(current_seeds, 2), *(k for k in _SEED_COUNTS if k > current_seeds)}):
        differences = [
            detectable_difference(contrast, seeds, family=family) for contrast in contrasts
        ]
        label = f"{seeds} (now)" if seeds == current_seeds else str(seeds)
        rows.append(
            text_row(label, format_number(min(differences)), format_number(max(differences)))
        )
    units = contrasts[0].units
    items = f" and {format_count(units, 'item')}" if units > 1 else ""
    blocks: list[Table | TextBlock] = [
        TextBlock(
            lines=(
                f"With {format_count(max(current_seeds, 2), 'seed')}{items} a difference of "
                f"{rows[0].cells[1].text} to {rows[0].cells[2].text} {unit} on {primary.metric}, "
                "by arm, is found in four out of five studies. This assumes that today's "
                "variances are true: use it to plan the next run, not as evidence.",
            )
        ),
        Table(
            name="power",
            caption=f"The smallest difference on {primary.metric} that is found with 80 % power "
            f"at a corrected level of 5 % ({format_count(family, 'comparison')}), by number "
            "of seeds per arm.",
            columns=make_columns("seeds", f"easiest arm ({unit})", f"hardest arm ({unit})"),
            rows=tuple(rows),
        ),
    ]
    delta = primary.smallest_difference
    inconclusive = [
        (entry, contrast) for entry, contrast in comparisons if entry.verdict in _INCONCLUSIVE
    ]
    if delta is not None and inconclusive:
        blocks.append(
            Table(
                name="seeds-needed",
                caption="Number of seeds per arm that would find a difference of δ = "
                f"{format_number(delta)} {unit}, for the arms without a clear answer; in "
                "brackets the range due to the uncertain seed variance.",
                columns=make_columns("arm", "seeds needed", text=(0, 1)),
                rows=tuple(
                    text_row(entry.name, seeds_needed(contrast, delta, family=family).text)
                    for entry, contrast in inconclusive
                ),
            )
        )
    return blocks


def testable_comparisons(summary: Summary, metric: str) -> list[tuple[Comparison, Contrast]]:
    """Return the arms' comparisons with a known seed variance, without a placebo."""
    return [
        (entry, entry.contrast)
        for row in summary.rows
        if (entry := row.comparison(metric)) is not None
        and entry.contrast is not None
        and not entry.placebo
        and entry.p_adjusted is not None
    ]
