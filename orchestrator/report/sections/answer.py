"""Answer a study's question in one sentence, from its verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis import Comparison, Verdict
from orchestrator.report.figures.coverage import pairs
from orchestrator.report.formatting import (
    baseline_text,
    counted,
    is_false_find,
    listed,
    points_text,
    signed,
)
from orchestrator.report.summary import Summary

_IS, _SHOWS, _HAS = ("is", "are"), ("shows", "show"), ("has", "have")
#: Verb (singular, plural) and words for each verdict.
_WORDS = {
    Verdict.BETTER: (_IS, "better"),
    Verdict.WORSE: (_IS, "worse"),
    Verdict.BETTER_BELOW_DELTA: (_IS, "better, but below δ"),
    Verdict.WORSE_BELOW_DELTA: (_IS, "worse, but below δ"),
    Verdict.NO_CLEAR_DIFFERENCE: (_SHOWS, "no clear difference (within ±δ)"),
    Verdict.TOO_FEW_SEEDS: (_IS, "inconclusive for want of seeds"),
    Verdict.TOO_FEW_ITEMS: (_IS, "inconclusive for want of items"),
    Verdict.ITEMS_ONLY: (_HAS, "no verdict, since one seed says nothing of training variance"),
    Verdict.NO_TEST: (_HAS, "no verdict, since nothing varies or seeds and items are too few"),
}
_FOUND = (
    Verdict.BETTER,
    Verdict.WORSE,
    Verdict.BETTER_BELOW_DELTA,
    Verdict.WORSE_BELOW_DELTA,
    Verdict.NO_CLEAR_DIFFERENCE,
)
_BETTER = (Verdict.BETTER, Verdict.BETTER_BELOW_DELTA)
_DETAILED = 4  # arms per verdict whose intervals are in the sentence


def answer(summary: Summary) -> str:
    """Return the study's answer in one sentence, which may be that there is none."""
    study = summary.plan.study
    primary = study.primary
    if primary is None:
        return "No answer: the study declares no primary metric, so its differences get no verdict."
    if primary.metric not in summary.compared:
        return f"No answer yet: the baseline has no figure of {primary.metric}."
    found = [
        row.figures[primary.metric].comparison
        for row in summary.rows
        if row.arm is not None and not row.arm.placebo and primary.metric in row.figures
    ]
    comparisons = [entry for entry in found if entry is not None]
    if not comparisons:
        alone = f"No answer: {summary.plan.baseline.name} is compared with no other arm."
        return f"{alone}{_false_finds(summary)}"
    unit = points_text(summary.metrics[primary.metric])
    said = _clauses(comparisons, unit)
    way = "lower" if primary.goal == "minimize" else "higher"
    sentence = (
        f"On {primary.metric} ({way} is better), against {baseline_text(summary)}: "
        f"{'; '.join(said)}"
    )
    averaged = [
        entry
        for entry in summary.effects[primary.metric].main
        if entry.used > 1 and entry.verdict in _FOUND
    ]
    if averaged:
        sentence += f"; averaged over the other factors, {'; '.join(_clauses(averaged, unit))}"
    less = _says_less(summary, comparisons)
    if less:
        sentence += f"; {less}"
    if not any(entry.verdict in _FOUND for entry in (*comparisons, *averaged)):
        tested = any(entry.p_adjusted is not None for entry in comparisons)
        sentence = f"{'Inconclusive' if tested else 'No answer'}: o{sentence[1:]}"
    if study.exploratory:
        sentence = f"Exploratory: {sentence[0].lower()}{sentence[1:]}"
    if summary.missing:
        sentence += f" ({counted(len(summary.missing), 'trial is', 'trials are')} missing)"
    return f"{sentence}.{_false_finds(summary)}"


def _false_finds(summary: Summary) -> str:
    """Return a warning if the placebo would have been called an effect, else an empty text."""
    said = []
    for row in summary.rows:
        for metric in summary.decided if row.arm is not None and row.arm.placebo else ():
            figure = row.figures.get(metric)
            if figure is None or not is_false_find(figure.comparison):
                continue
            low, high = figure.interval or (0.0, 0.0)
            unit = points_text(summary.metrics[metric])
            said.append(
                f"{metric} by {signed(figure.difference or 0.0)} {unit} (95 % interval "
                f"{signed(low)} to {signed(high)})"
            )
    if not said:
        return ""
    return (
        f" Warning: the placebo, which is the baseline with other seeds, differs from it on "
        f"{listed(said)}: it would have been called an effect. Differences of that size may come "
        "of the seeds alone: run more seeds before you rely on them."
    )


def _says_less(summary: Summary, comparisons: Sequence[Comparison]) -> str:
    """Return a clause on the arms that hallucinate less, but also have lower coverage."""
    primary = summary.plan.study.primary
    coverage = next(
        (across for across, up in pairs(summary) if primary is not None and up == primary.metric),
        None,
    )
    if coverage is None:
        return ""
    better = {entry.name for entry in comparisons if entry.verdict in _BETTER}
    unit = points_text(summary.metrics[coverage])
    named = []
    for row in summary.rows:
        figure = row.figures.get(coverage)
        interval = None if figure is None else figure.interval
        if figure is None or interval is None or row.name not in better or interval[1] >= 0:
            continue
        low, high = interval
        named.append(
            f"{row.name} ({signed(figure.difference or 0.0)} {unit}; 95 % interval {signed(low)} "
            f"to {signed(high)})"
        )
    if not named:
        return ""
    verb = "name" if len(named) > 1 else "names"
    return f"by {coverage}, {listed(named)} {verb} less of what is there"


def _clauses(comparisons: Sequence[Comparison], unit: str) -> list[str]:
    """Return one clause for each verdict that occurs."""
    said = []
    for verdict, (verbs, words) in _WORDS.items():
        named = [entry for entry in comparisons if entry.verdict is verdict]
        if named:
            names = _names(named, unit, detailed=verdict in _FOUND)
            said.append(f"{names} {verbs[len(named) > 1]} {words}")
    return said


def _names(comparisons: Sequence[Comparison], unit: str, *, detailed: bool) -> str:
    """List comparisons with their differences, the largest first."""
    ordered = sorted(comparisons, key=lambda entry: -abs(_estimate(entry)))
    names = []
    for place, entry in enumerate(ordered):
        interval = None if entry.contrast is None else entry.contrast.interval
        text = f"{entry.name} ({signed(_estimate(entry))} {unit}"
        if detailed and place < _DETAILED and interval is not None:
            low, high = interval
            text += f"; 95 % interval {signed(low)} to {signed(high)}"
        names.append(f"{text})")
    return listed(names)


def _estimate(entry: Comparison) -> float:
    return 0.0 if entry.contrast is None else entry.contrast.estimate
