"""Answer a study's question in one sentence, from its verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis import Comparison, Verdict
from orchestrator.report.figures.coverage import coverage_pairs
from orchestrator.report.formatting import (
    format_baseline,
    format_count,
    format_difference_unit,
    format_signed,
    is_false_positive,
    join_names,
)
from orchestrator.report.summary import Summary

_IS, _SHOWS, _HAS = ("is", "are"), ("shows", "show"), ("has", "have")
#: Verb (singular, plural) and words for each verdict.
_VERDICT_PHRASES = {
    Verdict.BETTER: (_IS, "better"),
    Verdict.WORSE: (_IS, "worse"),
    Verdict.BETTER_BELOW_DELTA: (_IS, "better, but below δ"),
    Verdict.WORSE_BELOW_DELTA: (_IS, "worse, but below δ"),
    Verdict.NO_CLEAR_DIFFERENCE: (_SHOWS, "no clear difference (within ±δ)"),
    Verdict.TOO_FEW_SEEDS: (_IS, "inconclusive because of too few seeds"),
    Verdict.TOO_FEW_ITEMS: (_IS, "inconclusive because of too few items"),
    Verdict.ITEMS_ONLY: (_HAS, "no verdict, since one seed says nothing about training variance"),
    Verdict.NO_TEST: (_HAS, "no verdict, since nothing varies or seeds and items are too few"),
}
_CONCLUSIVE = (
    Verdict.BETTER,
    Verdict.WORSE,
    Verdict.BETTER_BELOW_DELTA,
    Verdict.WORSE_BELOW_DELTA,
    Verdict.NO_CLEAR_DIFFERENCE,
)
_BETTER = (Verdict.BETTER, Verdict.BETTER_BELOW_DELTA)
_MAX_DETAILED = 4  # arms per verdict whose intervals are in the sentence


def answer_sentence(summary: Summary) -> str:
    """Return the study's answer in one sentence, which may be that there is none."""
    study = summary.plan.study
    primary = study.primary
    if primary is None:
        return "No answer: the study declares no primary metric, so its differences get no verdict."
    if primary.metric not in summary.compared:
        return f"No answer yet: the baseline has no figure of {primary.metric}."
    comparisons = [
        entry
        for row in summary.rows
        if (entry := row.comparison(primary.metric)) is not None and not entry.placebo
    ]
    if not comparisons:
        sentence_start = (
            f"No answer: {summary.plan.baseline.name} is not compared with any other arm."
        )
        return f"{sentence_start}{_false_positive_warning(summary)}"
    unit = format_difference_unit(summary.metrics[primary.metric])
    clauses = _verdict_clauses(comparisons, unit)
    direction = "lower" if primary.goal == "minimize" else "higher"
    sentence = (
        f"On {primary.metric} ({direction} is better), against {format_baseline(summary)}: "
        f"{'; '.join(clauses)}"
    )
    averaged = [
        entry
        for entry in summary.effects[primary.metric].main
        if entry.used > 1 and entry.verdict in _CONCLUSIVE
    ]
    if averaged:
        sentence += (
            f"; averaged over the other factors, {'; '.join(_verdict_clauses(averaged, unit))}"
        )
    coverage = _coverage_clause(summary, comparisons)
    if coverage:
        sentence += f"; {coverage}"
    if not any(entry.verdict in _CONCLUSIVE for entry in (*comparisons, *averaged)):
        tested = any(entry.p_adjusted is not None for entry in comparisons)
        sentence = f"{'Inconclusive' if tested else 'No answer'}: o{sentence[1:]}"
    if study.exploratory:
        sentence = f"Exploratory: {sentence[0].lower()}{sentence[1:]}"
    if summary.missing:
        sentence += f" ({format_count(len(summary.missing), 'trial is', 'trials are')} missing)"
    return f"{sentence}.{_false_positive_warning(summary)}"


def _false_positive_warning(summary: Summary) -> str:
    """Return a warning if the placebo would have been called an effect, else an empty text."""
    differences = []
    for row in summary.rows:
        for metric in summary.verdict_metrics if row.arm is not None and row.arm.placebo else ():
            figure = row.figures.get(metric)
            if figure is None or not is_false_positive(figure.comparison):
                continue
            unit = format_difference_unit(summary.metrics[metric])
            differences.append(
                f"{metric} by {format_signed(figure.difference or 0.0)} {unit} "
                f"({_format_interval(figure.interval or (0.0, 0.0))})"
            )
    if not differences:
        return ""
    return (
        " Warning: the placebo, which is the baseline with other seeds, differs from it on "
        f"{join_names(differences)}: it would have been called an effect. Differences of that "
        "size may be due to the seeds alone: run more seeds before you rely on them."
    )


def _coverage_clause(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """Return a clause on the arms that hallucinate less, but also have lower coverage."""
    primary = summary.plan.study.primary
    coverage = next(
        (
            x_metric
            for x_metric, y_metric in coverage_pairs(summary)
            if primary is not None and y_metric == primary.metric
        ),
        None,
    )
    if coverage is None:
        return ""
    better = {entry.name for entry in comparisons if entry.verdict in _BETTER}
    unit = format_difference_unit(summary.metrics[coverage])
    descriptions = []
    for row in summary.rows:
        figure = row.figures.get(coverage)
        interval = None if figure is None else figure.interval
        if figure is None or interval is None or row.name not in better or interval[1] >= 0:
            continue
        descriptions.append(
            f"{row.name} ({format_signed(figure.difference or 0.0)} {unit}; "
            f"{_format_interval(interval)})"
        )
    if not descriptions:
        return ""
    verb = "name" if len(descriptions) > 1 else "names"
    return f"by {coverage}, {join_names(descriptions)} {verb} fewer of the objects in the image"


def _verdict_clauses(comparisons: Sequence[Comparison], unit: str) -> list[str]:
    """Return one clause for each verdict that occurs."""
    clauses = []
    for verdict, (verbs, phrase) in _VERDICT_PHRASES.items():
        matching = [entry for entry in comparisons if entry.verdict is verdict]
        if matching:
            names = _list_comparisons(matching, unit, detailed=verdict in _CONCLUSIVE)
            clauses.append(f"{names} {verbs[len(matching) > 1]} {phrase}")
    return clauses


def _list_comparisons(comparisons: Sequence[Comparison], unit: str, *, detailed: bool) -> str:
    """List comparisons with their differences, the largest first."""
    ordered = sorted(comparisons, key=lambda entry: -abs(_estimate(entry)))
    names = []
    for index, entry in enumerate(ordered):
        interval = None if entry.contrast is None else entry.contrast.interval
        text = f"{entry.name} ({format_signed(_estimate(entry))} {unit}"
        if detailed and index < _MAX_DETAILED and interval is not None:
            text += f"; {_format_interval(interval)}"
        names.append(f"{text})")
    return join_names(names)


def _format_interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"95 % interval {format_signed(low)} to {format_signed(high)}"


def _estimate(entry: Comparison) -> float:
    return 0.0 if entry.contrast is None else entry.contrast.estimate
