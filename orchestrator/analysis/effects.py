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
        remaining = np.arange(len(ascending), 0, -1)  # tests not yet decided
        return np.maximum.accumulate(ascending * remaining)

    return _adjust_p_values(p, adjust)


def benjamini_hochberg(p: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini and Hochberg's adjusted p-values, in the order given.

    Keeps the expected share of false ones among the findings at the level: for exploring.
    (docs/statistics.md, "Many comparisons")

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """
    from scipy.stats import false_discovery_control  # about a CPU second to import: not for `plan`

    return _adjust_p_values(p, lambda ascending: np.asarray(false_discovery_control(ascending)))


def _adjust_p_values(
    p: Sequence[float | None], adjust: Callable[[Array], Array]
) -> list[float | None]:
    p_values = np.array([np.nan if value is None else value for value in p], dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p_values))
    if ((p_values[known] < 0) | (p_values[known] > 1)).any():
        raise ValueError("a p-value is not between 0 and 1")
    order = known[np.argsort(p_values[known], kind="stable")]
    adjusted: list[float | None] = [None] * len(p_values)
    if not len(order):
        return adjusted
    for index, value in zip(order, np.minimum(adjust(p_values[order]), 1.0), strict=True):
        adjusted[index] = float(value)
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


def compare_with_baseline(
    results: StudyResults, metric: str, *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Compare every other arm with the baseline. A placebo, the last, is a separate family.

    (docs/statistics.md, "Verdicts" and "A placebo")

    Args:
        results: results of the study.
        metric: name of the metric; the study's primary one if a verdict is to be quoted.
        alpha: significance level of intervals and verdicts.

    Raises:
        ValueError: there is no such metric, or its values are not such as `contrast` takes.
    """
    baseline = results.baseline_arm
    specs: list[_ContrastSpec] = []
    placebo_specs: list[_ContrastSpec] = []
    for index, arm in enumerate(results.arms):
        if index != baseline:
            weights = np.zeros(len(results.arms))
            weights[index], weights[baseline] = 1.0, -1.0
            changes = _changed_factors(results, arm)
            spec = _ContrastSpec(arm.name, changes, 1, 1, weights)
            (placebo_specs if arm.placebo else specs).append(spec)
    placebo_comparisons = _compare_family(results, metric, placebo_specs, alpha)
    return (
        *_compare_family(results, metric, specs, alpha),
        *(replace(entry, placebo=True) for entry in placebo_comparisons),
    )


def main_effects(
    results: StudyResults, metric: str, *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Return, for each factor, the effect of changing the baseline's level to each other one.

    This is the mean difference over the combinations of the other factors in which both cells
    exist. Two cells that are one trial cannot differ, and are left out.
    (docs/statistics.md, "Effects"; arguments and errors as `compare_with_baseline`)
    """
    specs = []
    for factor, (baseline_level, *other_levels) in results.factors.items():
        for level in other_levels:
            pairs = [
                tuple(
                    results.arm_by_cell.get(_add_levels(others, {factor: target}))
                    for target in (baseline_level, level)
                )
                for others in _other_factor_cells(results, {factor: (baseline_level, level)})
            ]
            weights, used = _average_weights(pairs, (-1.0, 1.0), len(results.arms))
            name = f"{factor}: {baseline_level} → {level}"
            specs.append(
                _ContrastSpec(name, {factor: (baseline_level, level)}, used, len(pairs), weights)
            )
    return _compare_family(results, metric, specs, alpha)


def interactions(
    results: StudyResults, metric: str, *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Return, for each pair of factors, how much one's effect depends on the other's level.

    This is the mean, over complete squares of four different trials, of the effect at the other's
    new level minus the effect at the baseline's. "Better" means that the two changes together do
    better than the sum of their effects.
    (docs/statistics.md, "Effects"; arguments and errors as `compare_with_baseline`)
    """
    specs = []
    for first, second in itertools.combinations(results.factors, 2):
        (first_baseline, *first_levels), (second_baseline, *second_levels) = (
            results.factors[first],
            results.factors[second],
        )
        for a, b in itertools.product(first_levels, second_levels):
            changes = {first: (first_baseline, a), second: (second_baseline, b)}
            corners = list(itertools.product((first_baseline, a), (second_baseline, b)))
            squares = [
                tuple(
                    results.arm_by_cell.get(_add_levels(others, {first: x, second: y}))
                    for x, y in corners
                )
                for others in _other_factor_cells(results, changes)
            ]
            weights, used = _average_weights(squares, (1.0, -1.0, -1.0, 1.0), len(results.arms))
            name = f"{first}: {first_baseline} → {a} × {second}: {second_baseline} → {b}"
            specs.append(_ContrastSpec(name, changes, used, len(squares), weights))
    return _compare_family(results, metric, specs, alpha)


@dataclass(frozen=True)
class _ContrastSpec:
    name: str
    changes: Mapping[str, tuple[str, str]]
    used: int
    combinations: int
    weights: Array


def _changed_factors(results: StudyResults, arm: StudyArm) -> dict[str, tuple[str, str]]:
    """Return the factors in which all cells of an arm differ from all of the baseline's."""
    baseline = results.arms[results.baseline_arm]
    changes = {}
    for factor, level in results.baseline.items():
        arm_levels = [cell[factor] for cell in arm.cells if factor in cell]
        if arm_levels and not {cell.get(factor) for cell in baseline.cells} & set(arm_levels):
            changes[factor] = (level, arm_levels[0])
    return changes


_Cell = frozenset[tuple[str, str]]


def _other_factor_cells(
    results: StudyResults, changes: Mapping[str, tuple[str, str]]
) -> list[_Cell]:
    """Return the combinations of the other factors that any of the cells in question has."""
    cells = {
        frozenset(item for item in cell.items() if item[0] not in changes): None
        for arm in results.arms
        for cell in arm.cells
        if all(cell.get(factor) in levels for factor, levels in changes.items())
    }
    return list(cells)


def _add_levels(others: _Cell, levels: Mapping[str, str]) -> _Cell:
    return others | frozenset(levels.items())


def _average_weights(
    groups: Sequence[tuple[int | None, ...]], signs: tuple[float, ...], arms: int
) -> tuple[Array, int]:
    """Return weights (C,) of the mean signed sum over groups of distinct arms, and their number."""
    complete = [group for group in groups if None not in group and len(set(group)) == len(signs)]
    weights = np.zeros(arms)
    for group in complete:
        for index, sign in zip(group, signs, strict=True):
            weights[index] += sign
    return weights / max(len(complete), 1), len(complete)


def _compare_family(
    results: StudyResults, metric: str, specs: Sequence[_ContrastSpec], alpha: float
) -> tuple[Comparison, ...]:
    """Estimate one family of comparisons, correct its p-values and give the verdicts."""
    metric_results = results.metric(metric)
    contrasts = [
        _estimate_contrast(results, metric, spec.weights, alpha) if spec.weights.any() else None
        for spec in specs
    ]
    correct = benjamini_hochberg if results.exploratory else holm
    p = correct([None if estimate is None else estimate.p for estimate in contrasts])
    p_equivalence = correct(
        [None if estimate is None else estimate.p_equivalence for estimate in contrasts]
    )
    return tuple(
        Comparison(
            name=spec.name,
            changes=spec.changes,
            used=spec.used,
            combinations=spec.combinations,
            weights=tuple(spec.weights.tolist()) if estimate is not None else (),
            contrast=estimate,
            p_adjusted=p_value,
            p_equivalence_adjusted=p_equivalence_value,
            verdict=_decide_verdict(
                estimate, p_value, p_equivalence_value, metric_results.goal == "maximize", alpha
            ),
        )
        for spec, estimate, p_value, p_equivalence_value in zip(
            specs, contrasts, p, p_equivalence, strict=True
        )
    )


def _estimate_contrast(
    results: StudyResults, metric: str, weights: Array, alpha: float
) -> Contrast:
    metric_results = results.metric(metric)
    # A placebo's seeds form no block with the others', and it must not change other figures.
    indices = [index for index, arm in enumerate(results.arms) if weights[index] or not arm.placebo]
    arms = [results.arms[index] for index in indices]
    values = [metric_results.values[index] for index in indices]
    weights = weights[indices]
    pool = report_pool(values, weights, collapsed=[arm.collapsed for arm in arms])
    seed_sets = [
        arm.seeds
        for arm, in_pool, weight in zip(arms, pool, weights, strict=True)
        if weight or (in_pool and len(arm.seeds) > 1)
    ]
    return contrast(
        values,
        weights,
        blocked=results.common_random_numbers and len(set(seed_sets)) == 1,
        pool=pool,
        delta=metric_results.smallest_difference,
        alpha=alpha,
    )


def _decide_verdict(
    estimate: Contrast | None,
    p: float | None,
    p_equivalence: float | None,
    higher_is_better: bool,
    alpha: float,
) -> Verdict:
    """Return the verdict; `higher_is_better` is whether a higher figure is better."""
    if estimate is None:
        return Verdict.NOT_ESTIMABLE
    if estimate.v_seed is None or estimate.v_res is None:
        return Verdict.ITEMS_ONLY if estimate.kind == "items_only" else Verdict.NO_TEST
    if p is None:
        return Verdict.NO_TEST
    is_equivalent = p_equivalence is not None and p_equivalence < alpha
    if p < alpha:
        if (estimate.estimate > 0) == higher_is_better:
            return Verdict.BETTER_BELOW_DELTA if is_equivalent else Verdict.BETTER
        return Verdict.WORSE_BELOW_DELTA if is_equivalent else Verdict.WORSE
    if is_equivalent:
        return Verdict.NO_CLEAR_DIFFERENCE
    if max(estimate.v_seed - estimate.v_res, 0.0) >= max(estimate.v_item - estimate.v_res, 0.0):
        return Verdict.TOO_FEW_SEEDS
    return Verdict.TOO_FEW_ITEMS
