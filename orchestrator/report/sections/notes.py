"""Write the notes on how to read the tables, and the footnotes of the table of arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.analysis import Comparison, report_pool, seed_correlation
from orchestrator.report.formatting import (
    FLAGS,
    baseline_text,
    correction,
    counted,
    flags,
    listed,
    plain,
)
from orchestrator.report.sections.search import CAUTION
from orchestrator.report.summary import Summary
from orchestrator.study.design import iter_layout_notes


def notes(summary: Summary) -> list[str]:
    """Return all notes, the general ones first."""
    return [*_general(summary), *_units(summary), *_luck(summary), *particulars(summary)]


def particulars(summary: Summary) -> list[str]:
    """Return the notes on this study's figures."""
    return [*_flagged(summary), *_contrast_notes(summary), *_rows(summary)]


def _general(summary: Summary) -> Iterator[str]:
    study = summary.plan.study
    yield (
        "Mean ± standard deviation over seeds; with it the difference from the baseline, "
        f"{baseline_text(summary)}, and its 95 % interval over seeds and items. The intervals "
        "are marginal: each is that of a single comparison. "
        + (
            f"The verdict is not: it uses p-values corrected by {correction(summary)}'s method "
            f"over the arms{', as the study is declared exploratory' * study.exploratory}, "
            "so an interval may leave out 0 where the verdict is inconclusive. Bold: better."
            if summary.decided
            else "No metric is declared primary, so there are no verdicts and nothing is bold."
        )
    )
    deltas = [
        f"{plain(entry.smallest_difference)} for {entry.metric}"
        for entry in study.declared_metrics
        if entry.smallest_difference is not None
    ]
    if deltas:
        yield f"δ, the smallest difference that matters: {listed(deltas)}."
    elif summary.decided:
        yield (
            "The study sets no smallest difference that matters (δ), so nothing is said to make "
            "no difference."
        )
    yield (
        "A figure shown is the benchmark's own; differences, intervals and p-values are computed "
        "from item outcomes, without constants that an official script adds."
    )
    if study.tune is not None:
        keys, metric = listed(list(study.tune.keys)), study.tune.metric.name
        yield (
            f"Each arm chose {keys} for itself by {metric}, with the same "
            f"{counted(study.tune.trials, 'draw')} for every arm. {CAUTION}"
        )
    elif any(arm.trials[0].config.training.score_at for arm in summary.plan.arms):
        yield (
            "Models of trainings were picked by figures under `select/`, by a declared rule; those "
            "figures get no verdict, and are better than those of other questions would be."
        )
    elif study.benchmarks.select:
        yield (
            "The study tuned nothing by itself. Figures under `select/` are there to choose "
            "settings by; they get no verdict."
        )
    if study.published:
        yield "Published figures are shown beside the study's own and enter no computation."


def _units(summary: Summary) -> Iterator[str]:
    """Yield the number of items of each benchmark and of those left out."""
    said: dict[str, list[str]] = {}
    for metric, one in summary.compared.items():
        if one.items:
            text = counted(len(one.items), "item")
            if one.dropped:
                text += f" ({counted(one.dropped, 'item')} left out, missing in some trial)"
        else:
            text = "benchmark items treated as fixed"
        said.setdefault(f"{metric.rpartition('/')[0]}: {text}", []).append(metric)
    for text, metrics in said.items():
        benchmark, _, rest = text.partition(": ")
        whole = [metric for metric in summary.compared if metric.rpartition("/")[0] == benchmark]
        yield f"{benchmark if metrics == whole else listed(metrics)}: {rest}."


def _luck(summary: Summary) -> Iterator[str]:
    """Yield the seed correlation that common random numbers achieved."""
    for metric in summary.decided[:1]:
        one = summary.compared.get(metric)
        if one is None:
            continue
        # A placebo's seeds share no random numbers with other arms.
        placed = zip(one.results.arms, one.results.metric(metric).values, strict=True)
        values = [value for arm, value in placed if not arm.placebo]
        weights = [0.0] * len(values)
        weights[one.results.baseline_arm] = 1.0
        r = seed_correlation(values, report_pool(values, weights))
        if r is not None:
            yield (
                f"Common random numbers: r̂ = {plain(r)} on {metric} (1: a seed acts on all arms "
                "alike and cancels in differences; 0 or below: it bought nothing)."
            )


def _flagged(summary: Summary) -> Iterator[str]:
    for mark, meaning in FLAGS.items():
        named = [
            f"{entry.name} on {metric}"
            for metric, entry in _comparisons(summary)
            if metric in summary.decided and mark in flags(entry)
        ]
        if named:
            yield f"{mark} {meaning}: {listed(named)}."


def _contrast_notes(summary: Summary) -> Iterator[str]:
    """Yield the statistics' notes with their counts, such as on single seeds."""
    told: dict[str, int] = {}
    flagged = set(FLAGS.values()) | {
        "these cells scatter more between seeds than the others",
        "benchmark items treated as fixed",
    }
    for _, entry in _comparisons(summary):
        for note in entry.contrast.notes if entry.contrast else ():
            if note not in flagged:
                told[note] = told.get(note, 0) + 1
    for note, count in told.items():
        yield f"{note[0].upper()}{note[1:]} ({counted(count, 'difference')})."


def _rows(summary: Summary) -> Iterator[str]:
    """Yield notes on merged cells, on scoring and on missing trials and figures."""
    for note in iter_layout_notes(summary.plan.study):
        yield f"Cells: {note}."
    for arm in summary.plan.arms:
        if len(arm.cells) > 1:
            yield f"{arm.name}: stands for {len(arm.cells)} cells. {'; '.join(arm.reasons)}."
    yield from summary.scoring
    undefined = [
        f"{metric} of {row.name}{'' if seed is None else f', seed {seed}'}"
        for row in summary.rows
        for seed, state in row.states.items()
        for metric in summary.metrics
        if state == "done" and (metric not in row.figures or seed not in row.figures[metric].values)
    ]
    if undefined:
        yield f"Undefined (nothing to divide by), and left out of comparisons: {listed(undefined)}."
    if summary.missing:
        yield f"Not there: {'; '.join(summary.missing)}."
    yield from _cut(summary)
    yield from summary.left_out
    if summary.gone:
        yield (
            f"{counted(summary.gone, 'trial')} of cells or settings that the study file no longer "
            "has: in the ledger, not reported."
        )


def _cut(summary: Summary) -> Iterator[str]:
    """Yield a note on early stopping and the arms that it cut."""
    rule = summary.plan.study.early_stopping
    if rule is None:
        return
    cut = [
        f"{row.name} ({counted(count, 'seed')} of {len(row.states)})"
        for row in summary.rows
        if (count := sum(state == "cut" for state in row.states.values()))
    ]
    whose = "the baseline's and the placebo's" if summary.plan.study.placebo else "the baseline's"
    yield f"Early stopping: {rule.description}; {whose} trainings are never cut." + (
        f" Cut: {listed(cut)}. A cut training gives no figures. Differences with these arms are no "
        "fair comparison: which of their seeds are left, the rule chose."
        if cut
        else " Nothing was cut."
    )


def _comparisons(summary: Summary) -> Iterator[tuple[str, Comparison]]:
    for row in summary.rows:
        for metric, figure in row.figures.items():
            if figure.comparison is not None:
                yield metric, figure.comparison


_SHORT = 12  # characters of a hash


def footnotes(summary: Summary, origin: Mapping[str, Any]) -> list[str]:
    """Return the footnotes of the table of arms.

    Args:
        summary: summary of the study.
        origin: provenance of its trials.
    """
    lines = [_counts(summary), _hashes(origin)]
    if summary.missing:
        whole = sum(len(row.states) for row in summary.rows)
        lines.append(
            f"Not there, {len(summary.missing)} of {counted(whole, 'trial')}: "
            f"{listed(summary.missing)}."
        )
    return lines


def _counts(summary: Summary) -> str:
    """Return the numbers of seeds per arm and of items per metric."""
    seeds = summary.plan.study.seeds
    said = [f"{counted(len(seeds), 'seed')} an arm ({', '.join(map(str, seeds))})"]
    by_items: dict[str, list[str]] = {}
    for metric in summary.decided:
        one = summary.compared.get(metric)
        if one is not None:
            text = counted(len(one.items), "item") if one.items else "items taken as fixed"
            text += f", {one.dropped:,} left out" if one.dropped else ""
            by_items.setdefault(text, []).append(metric)
    said += [f"{text} on {listed(metrics)}" for text, metrics in by_items.items()]
    return f"n: {'; '.join(said)}."


def _hashes(origin: Mapping[str, Any]) -> str:
    """Return the identities of models, data, evaluations and code."""
    trials = origin["trials"]
    models = sorted({_named(trial["model"]) for trial in trials})
    sets = sorted({_named(trial["data"]) for trial in trials if trial["data"]})
    scored = [f"{key} {fingerprint[:_SHORT]}" for key, fingerprint in origin["evaluations"].items()]
    parts = [
        f"model {' and '.join(models)}",
        *([f"data {' and '.join(sets)}"] if sets else []),
        *([f"evaluation {', '.join(scored)}"] if scored else []),
        f"behaviour number {origin['behaviour']}",
    ]
    return f"Made of: {'; '.join(parts)}. Every trial's fingerprint is in provenance.json."


def _named(identity: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {str(value)[:_SHORT] if len(str(value)) > 2 * _SHORT else value}"
        for key, value in identity.items()
    )
