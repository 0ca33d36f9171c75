"""Compare arms with the baseline, estimate effects, and give verdicts.

C arms; a comparison is a contrast of them. The p-values of several are corrected for their number:
m tests that have one, of the P given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from orchestrator.analysis.contrast import Contrast, contrast
from orchestrator.analysis.results import StudyArm, StudyResults
from orchestrator.analysis.values import Array
from orchestrator.analysis.variance import report_pool


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, in the order given.

    Keeps the chance of any false finding at the level, whatever the tests' dependence.
    (docs/statistics.md, "Many comparisons")

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """

    def adjust(ascending: Array) -> Array:
        left = np.arange(len(ascending), 0, -1)  # tests not yet decided
        return np.maximum.accumulate(ascending * left)

    return _adjusted(p, adjust)


def benjamini_hochberg(p: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini and Hochberg's adjusted p-values, in the order given.

    Keeps the expected share of false ones among the findings at the level: for exploring.
    (docs/statistics.md, "Many comparisons")

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """
    from scipy.stats import false_discovery_control  # about a CPU second to import: not for `plan`

    return _adjusted(p, lambda ascending: np.asarray(false_discovery_control(ascending)))


def _adjusted(p: Sequence[float | None], adjust: Callable[[Array], Array]) -> list[float | None]:
    given = np.array([np.nan if value is None else value for value in p], dtype=np.float64)
    known = np.flatnonzero(~np.isnan(given))
    if ((given[known] < 0) | (given[known] > 1)).any():
        raise ValueError("a p-value is not between 0 and 1")
    order = known[np.argsort(given[known], kind="stable")]
    adjusted: list[float | None] = [None] * len(given)
    if not len(order):
        return adjusted
    for place, value in zip(order, np.minimum(adjust(given[order]), 1.0), strict=True):
        adjusted[place] = float(value)
    return adjusted


class Verdict(StrEnum):
    """The verdict on a comparison, in the words of the report."""

    BETTER = "better"
    WORSE = "worse"
    BETTER_BELOW_DELTA = "better, but below δ"
    WORSE_BELOW_DELTA = "worse, but below δ"
    NO_CLEAR_DIFFERENCE = "no clear difference (within ±δ)"
    TOO_FEW_SEEDS = "inconclusive: too few seeds"
    TOO_FEW_ITEMS = "inconclusive: too few items"
    ITEMS_ONLY = "items only: this says nothing of training variance"
    NO_TEST = "no test"
    NOT_ESTIMABLE = "not estimable"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison of a study and its result. Figures are in the metric's shown unit."""

    name: str
    changes: Mapping[str, tuple[str, str]]  # factor -> (from, to)
    used: int  # differences (interactions: squares) that were averaged
    combinations: int  # number of possible ones
    weights: tuple[float, ...]  # of the arms; empty if not estimable
    contrast: Contrast | None  # None if not estimable
    p_adjusted: float | None  # Holm over its family; Benjamini–Hochberg if exploratory
    p_equivalence_adjusted: float | None
    verdict: Verdict
    placebo: bool = False  # the arms differ only in seeds: an effect is a false positive


def verdicts(results: StudyResults, metric: str, *, alpha: float = 0.05) -> tuple[Comparison, ...]:
    """Compare every other arm with the baseline. A placebo, the last, is a separate family.

    (docs/statistics.md, "Verdicts" and "A placebo")

    Args:
        results: results of the study.
        metric: name of the metric; the study's primary one if a verdict is to be quoted.
        alpha: significance level of intervals and verdicts.

    Raises:
        ValueError: there is no such metric, or its values are not such as `contrast` takes.
    """
    base = results.baseline_arm
    asked: list[_Question] = []
    placebos: list[_Question] = []
    for place, arm in enumerate(results.arms):
        if place != base:
            weights = np.zeros(len(results.arms))
            weights[place], weights[base] = 1.0, -1.0
            changes = _changes(results, arm)
            question = _Question(arm.name, changes, 1, 1, weights)
            (placebos if arm.placebo else asked).append(question)
    apart = _answer(results, metric, placebos, alpha)
    return (
        *_answer(results, metric, asked, alpha),
        *(replace(entry, placebo=True) for entry in apart),
    )


def main_effects(
    results: StudyResults, metric: str, *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Return, for each factor, the effect of changing the baseline's level to each other one.

    This is the mean difference over the combinations of the other factors in which both cells
    exist. Two cells that are one trial cannot differ, and are left out.
    (docs/statistics.md, "Effects"; arguments and errors as `verdicts`)
    """
    asked = []
    for factor, (first, *rest) in results.factors.items():
        for level in rest:
            pairs = [
                tuple(results.arm_of.get(_with(others, {factor: to})) for to in (first, level))
                for others in _others(results, {factor: (first, level)})
            ]
            weights, used = _average(pairs, (-1.0, 1.0), len(results.arms))
            name = f"{factor}: {first} → {level}"
            asked.append(_Question(name, {factor: (first, level)}, used, len(pairs), weights))
    return _answer(results, metric, asked, alpha)


def interactions(
    results: StudyResults, metric: str, *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Return, for each pair of factors, how much one's effect depends on the other's level.

    This is the mean, over complete squares of four different trials, of the effect at the other's
    new level minus the effect at the baseline's. "Better" means that the two changes together do
    better than the sum of their effects.
    (docs/statistics.md, "Effects"; arguments and errors as `verdicts`)
    """
    asked = []
    for one, two in itertools.combinations(results.factors, 2):
        (from_one, *to_one), (from_two, *to_two) = results.factors[one], results.factors[two]
        for a, b in itertools.product(to_one, to_two):
            changes = {one: (from_one, a), two: (from_two, b)}
            corners = list(itertools.product((from_one, a), (from_two, b)))
            squares = [
                tuple(results.arm_of.get(_with(others, {one: x, two: y})) for x, y in corners)
                for others in _others(results, changes)
            ]
            weights, used = _average(squares, (1.0, -1.0, -1.0, 1.0), len(results.arms))
            name = f"{one}: {from_one} → {a} × {two}: {from_two} → {b}"
            asked.append(_Question(name, changes, used, len(squares), weights))
    return _answer(results, metric, asked, alpha)


@dataclass(frozen=True)
class _Question:
    name: str
    changes: Mapping[str, tuple[str, str]]
    used: int
    combinations: int
    weights: Array


def _changes(results: StudyResults, arm: StudyArm) -> dict[str, tuple[str, str]]:
    """Return the factors in which all cells of an arm differ from all of the baseline's."""
    base = results.arms[results.baseline_arm]
    changes = {}
    for factor, level in results.baseline.items():
        ours = [cell[factor] for cell in arm.cells if factor in cell]
        if ours and not {cell.get(factor) for cell in base.cells} & set(ours):
            changes[factor] = (level, ours[0])
    return changes


_Cell = frozenset[tuple[str, str]]


def _others(results: StudyResults, changes: Mapping[str, tuple[str, str]]) -> list[_Cell]:
    """Return the combinations of the other factors that any of the cells in question has."""
    found = {
        frozenset(item for item in cell.items() if item[0] not in changes): None
        for arm in results.arms
        for cell in arm.cells
        if all(cell.get(factor) in levels for factor, levels in changes.items())
    }
    return list(found)


def _with(others: _Cell, levels: Mapping[str, str]) -> _Cell:
    return others | frozenset(levels.items())


def _average(
    groups: Sequence[tuple[int | None, ...]], signs: tuple[float, ...], arms: int
) -> tuple[Array, int]:
    """Return weights (C,) of the mean signed sum over groups of distinct arms, and their number."""
    complete = [group for group in groups if None not in group and len(set(group)) == len(signs)]
    weights = np.zeros(arms)
    for group in complete:
        for place, sign in zip(group, signs, strict=True):
            weights[place] += sign
    return weights / max(len(complete), 1), len(complete)


def _answer(
    results: StudyResults, metric: str, asked: Sequence[_Question], alpha: float
) -> tuple[Comparison, ...]:
    """Estimate one family of comparisons, correct its p-values and give the verdicts."""
    declared = results.metric(metric)
    found = [
        _contrast(results, metric, question.weights, alpha) if question.weights.any() else None
        for question in asked
    ]
    correct = benjamini_hochberg if results.exploratory else holm
    p = correct([None if one is None else one.p for one in found])
    p_equivalence = correct([None if one is None else one.p_equivalence for one in found])
    return tuple(
        Comparison(
            name=question.name,
            changes=question.changes,
            used=question.used,
            combinations=question.combinations,
            weights=tuple(question.weights.tolist()) if one is not None else (),
            contrast=one,
            p_adjusted=p_one,
            p_equivalence_adjusted=p_other,
            verdict=_verdict(one, p_one, p_other, declared.goal == "maximize", alpha),
        )
        for question, one, p_one, p_other in zip(asked, found, p, p_equivalence, strict=True)
    )


def _contrast(results: StudyResults, metric: str, weights: Array, alpha: float) -> Contrast:
    declared = results.metric(metric)
    # A placebo's seeds form no block with the others', and it must not change other figures.
    shown = [place for place, arm in enumerate(results.arms) if weights[place] or not arm.placebo]
    arms = [results.arms[place] for place in shown]
    values = [declared.values[place] for place in shown]
    weights = weights[shown]
    pool = report_pool(values, weights, collapsed=[arm.collapsed for arm in arms])
    needed = [
        arm.seeds
        for arm, kept, weight in zip(arms, pool, weights, strict=True)
        if weight or (kept and len(arm.seeds) > 1)
    ]
    return contrast(
        values,
        weights,
        blocked=results.common_random_numbers and len(set(needed)) == 1,
        pool=pool,
        delta=declared.smallest_difference,
        alpha=alpha,
    )


def _verdict(
    found: Contrast | None, p: float | None, p_equivalence: float | None, more: bool, alpha: float
) -> Verdict:
    """Return the verdict; `more` is whether a higher figure is better."""
    if found is None:
        return Verdict.NOT_ESTIMABLE
    if found.v_seed is None or found.v_res is None:
        return Verdict.ITEMS_ONLY if found.kind == "items_only" else Verdict.NO_TEST
    if p is None:
        return Verdict.NO_TEST
    within = p_equivalence is not None and p_equivalence < alpha
    if p < alpha:
        if (found.estimate > 0) == more:
            return Verdict.BETTER_BELOW_DELTA if within else Verdict.BETTER
        return Verdict.WORSE_BELOW_DELTA if within else Verdict.WORSE
    if within:
        return Verdict.NO_CLEAR_DIFFERENCE
    if max(found.v_seed - found.v_res, 0.0) >= max(found.v_item - found.v_res, 0.0):
        return Verdict.TOO_FEW_SEEDS
    return Verdict.TOO_FEW_ITEMS
