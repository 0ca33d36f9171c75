"""Write the notes on how to read the tables, and the footnotes of the table of arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.analysis import Comparison, report_pool, seed_correlation
from orchestrator.report.formatting import (
    FLAG_MEANINGS,
    correction_name,
    format_baseline,
    format_count,
    format_flags,
    format_number,
    join_names,
)
from orchestrator.report.sections.search import SEARCH_CAUTION
from orchestrator.report.summary import Summary
from orchestrator.study.design import iter_layout_notes


def build_notes(summary: Summary) -> list[str]:
    """Return all notes, the general ones first."""
    return [
        *_general_notes(summary),
        *_item_count_notes(summary),
        *_seed_correlation_notes(summary),
        *study_notes(summary),
    ]


def study_notes(summary: Summary) -> list[str]:
    """Return the notes on this study's figures."""
    return [*_flag_notes(summary), *_contrast_notes(summary), *_row_notes(summary)]


def _general_notes(summary: Summary) -> Iterator[str]:
    study = summary.plan.study
    yield (
        "Mean ± standard deviation over seeds; with it the difference from the baseline, "
        f"{format_baseline(summary)}, and its 95 % interval over seeds and items. The intervals "
        "are marginal: each is that of a single comparison. "
        + (
            f"The verdict is not: it uses p-values corrected by {correction_name(summary)}'s "
            "method over the "
            f"arms{', because the study is declared exploratory' * study.exploratory}, so an "
            "interval may exclude 0 although the verdict is inconclusive. Bold: better."
            if summary.verdict_metrics
            else "No metric is declared primary, so there are no verdicts and nothing is bold."
        )
    )
    deltas = [
        f"{format_number(entry.smallest_difference)} for {entry.metric}"
        for entry in study.declared_metrics
        if entry.smallest_difference is not None
    ]
    if deltas:
        yield f"δ, the smallest difference that matters: {join_names(deltas)}."
    elif summary.verdict_metrics:
        yield (
            "The study sets no smallest difference that matters (δ), so no arm can be called equal."
        )
    yield (
        "A figure shown is the benchmark's own; differences, intervals and p-values are computed "
        "from item outcomes, without constants that an official script adds."
    )
    if study.tune is not None:
        keys, metric = join_names(list(study.tune.keys)), study.tune.metric.name
        yield (
            f"Each arm chose {keys} for itself by {metric}, with the same "
            f"{format_count(study.tune.trials, 'draw')} for every arm. {SEARCH_CAUTION}"
        )
    elif any(arm.trials[0].config.training.score_at for arm in summary.plan.arms):
        yield (
            "Models of trainings were picked by figures under `select/`, by a declared rule; "
            "those figures get no verdict, and are better than figures on other questions would "
            "be."
        )
    elif study.benchmarks.select:
        yield (
            "The study did not tune anything itself. Figures under `select/` are for choosing "
            "settings; they get no verdict."
        )
    if study.published:
        yield (
            "Published figures are shown next to the study's own and are not used in any "
            "computation."
        )


def _item_count_notes(summary: Summary) -> Iterator[str]:
    """Yield the number of items of each benchmark and of those left out."""
    metrics_by_text: dict[str, list[str]] = {}
    for metric, compared in summary.compared.items():
        if compared.items:
            text = format_count(len(compared.items), "item")
            if compared.dropped:
                text += (
                    f" ({format_count(compared.dropped, 'item')} left out, missing in some trial)"
                )
        else:
            text = "benchmark items treated as fixed"
        metrics_by_text.setdefault(f"{metric.rpartition('/')[0]}: {text}", []).append(metric)
    for text, metrics in metrics_by_text.items():
        benchmark, _, count_text = text.partition(": ")
        benchmark_metrics = [
            metric for metric in summary.compared if metric.rpartition("/")[0] == benchmark
        ]
        yield f"{benchmark if metrics == benchmark_metrics else join_names(metrics)}: {count_text}."


def _seed_correlation_notes(summary: Summary) -> Iterator[str]:
    """Yield the seed correlation that common random numbers achieved."""
    for metric in summary.verdict_metrics[:1]:
        compared = summary.compared.get(metric)
        if compared is None:
            continue
        # A placebo's seeds share no random numbers with other arms.
        arm_values = zip(compared.results.arms, compared.results.metric(metric).values, strict=True)
        values = [value for arm, value in arm_values if not arm.placebo]
        weights = [0.0] * len(values)
        weights[compared.results.baseline_arm] = 1.0
        r = seed_correlation(values, report_pool(values, weights))
        if r is not None:
            yield (
                f"Common random numbers: r̂ = {format_number(r)} on {metric} (1: a seed affects "
                "all arms in the same way and cancels in differences; 0 or below: it did not "
                "help)."
            )


def _flag_notes(summary: Summary) -> Iterator[str]:
    for flag, meaning in FLAG_MEANINGS.items():
        descriptions = [
            f"{entry.name} on {metric}"
            for metric, entry in _iter_comparisons(summary)
            if metric in summary.verdict_metrics and flag in format_flags(entry)
        ]
        if descriptions:
            yield f"{flag} {meaning}: {join_names(descriptions)}."


def _contrast_notes(summary: Summary) -> Iterator[str]:
    """Yield the statistics' notes with their counts, such as on single seeds."""
    counts: dict[str, int] = {}
    flagged = set(FLAG_MEANINGS.values()) | {
        "these cells scatter more between seeds than the others",
        "benchmark items treated as fixed",
    }
    for _, entry in _iter_comparisons(summary):
        for note in entry.contrast.notes if entry.contrast else ():
            if note not in flagged:
                counts[note] = counts.get(note, 0) + 1
    for note, count in counts.items():
        yield f"{note[0].upper()}{note[1:]} ({format_count(count, 'difference')})."


def _row_notes(summary: Summary) -> Iterator[str]:
    """Yield notes on merged cells, on scoring and on missing trials and figures."""
    for note in iter_layout_notes(summary.plan.study):
        yield f"Cells: {note}."
    for arm in summary.plan.arms:
        if len(arm.cells) > 1:
            yield f"{arm.name}: represents {len(arm.cells)} cells. {'; '.join(arm.reasons)}."
    yield from summary.scoring
    undefined = [
        f"{metric} of {row.name}{'' if seed is None else f', seed {seed}'}"
        for row in summary.rows
        for seed, state in row.states.items()
        for metric in summary.metrics
        if state == "done" and (metric not in row.figures or seed not in row.figures[metric].values)
    ]
    if undefined:
        yield (
            "Undefined (nothing to divide by), and left out of comparisons: "
            f"{join_names(undefined)}."
        )
    if summary.missing:
        yield f"Not there: {'; '.join(summary.missing)}."
    yield from _early_stopping_notes(summary)
    yield from summary.left_out
    if summary.former_trials:
        yield (
            f"{format_count(summary.former_trials, 'trial')} of cells or settings that the study "
            "file no longer has: in the ledger, not reported."
        )


def _early_stopping_notes(summary: Summary) -> Iterator[str]:
    """Yield a note on early stopping and the arms that it cut."""
    rule = summary.plan.study.early_stopping
    if rule is None:
        return
    cut_arms = [
        f"{row.name} ({format_count(count, 'seed')} of {len(row.states)})"
        for row in summary.rows
        if (count := sum(state == "cut" for state in row.states.values()))
    ]
    exempt = "the baseline's and the placebo's" if summary.plan.study.placebo else "the baseline's"
    yield f"Early stopping: {rule.description}; {exempt} trainings are never cut." + (
        f" Cut: {join_names(cut_arms)}. A cut training gives no figures. Differences with these "
        "arms are not a fair comparison, because the rule chose which of their seeds are left."
        if cut_arms
        else " No training was cut."
    )


def _iter_comparisons(summary: Summary) -> Iterator[tuple[str, Comparison]]:
    for row in summary.rows:
        for metric, figure in row.figures.items():
            if figure.comparison is not None:
                yield metric, figure.comparison


_HASH_LENGTH = 12  # characters of a hash


def table_footnotes(summary: Summary, provenance: Mapping[str, Any]) -> list[str]:
    """Return the footnotes of the table of arms.

    Args:
        summary: summary of the study.
        provenance: provenance of its trials.
    """
    lines = [_count_footnote(summary), _hash_footnote(provenance)]
    if summary.missing:
        total = sum(len(row.states) for row in summary.rows)
        lines.append(
            f"Missing, {len(summary.missing)} of {format_count(total, 'trial')}: "
            f"{join_names(summary.missing)}."
        )
    return lines


def _count_footnote(summary: Summary) -> str:
    """Return the numbers of seeds per arm and of items per metric."""
    seeds = summary.plan.study.seeds
    parts = [f"{format_count(len(seeds), 'seed')} an arm ({', '.join(map(str, seeds))})"]
    by_items: dict[str, list[str]] = {}
    for metric in summary.verdict_metrics:
        compared = summary.compared.get(metric)
        if compared is not None:
            text = (
                format_count(len(compared.items), "item")
                if compared.items
                else "items treated as fixed"
            )
            text += f", {compared.dropped:,} left out" if compared.dropped else ""
            by_items.setdefault(text, []).append(metric)
    parts += [f"{text} on {join_names(metrics)}" for text, metrics in by_items.items()]
    return f"n: {'; '.join(parts)}."


def _hash_footnote(provenance: Mapping[str, Any]) -> str:
    """Return the identities of models, data, evaluations and code."""
    trials = provenance["trials"]
    models = sorted({_format_identity(trial["model"]) for trial in trials})
    data_sets = sorted({_format_identity(trial["data"]) for trial in trials if trial["data"]})
    scored = [
        f"{key} {fingerprint[:_HASH_LENGTH]}"
        for key, fingerprint in provenance["evaluations"].items()
    ]
    parts = [
        f"model {' and '.join(models)}",
        *([f"data {' and '.join(data_sets)}"] if data_sets else []),
        *([f"evaluation {', '.join(scored)}"] if scored else []),
        f"behaviour number {provenance['behaviour']}",
    ]
    return f"Made from: {'; '.join(parts)}. Every trial's fingerprint is in provenance.json."


def _format_identity(identity: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {str(value)[:_HASH_LENGTH] if len(str(value)) > 2 * _HASH_LENGTH else value}"
        for key, value in identity.items()
    )
