"""Estimate the difference that a number of seeds would find (docs/statistics.md).

From the variances of the study's own runs where there are some; else from assumptions that are
said beside the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis import Contrast, detectable_difference
from orchestrator.cost.user_rates import Assumptions

#: Seeds that are looked at beside the study's own.
SEED_COUNTS = (2, 3, 5, 10)


@dataclass(frozen=True, kw_only=True)
class PowerEstimate:
    """What seeds of every arm would find on one metric, with 80 % power."""

    metric: str
    unit: str
    items: int
    comparisons: int
    differences: tuple[tuple[int, float], ...]  # (seeds, difference in the metric's unit)
    basis: str  # where the variances come from


def power_from_runs(
    metric: str, unit: str, seeds: int, contrasts: Sequence[Contrast], trials: int
) -> PowerEstimate:
    """Return what seeds buy by the variances of what has been run: of the hardest arm.

    Args:
        metric: the primary metric.
        unit: of its differences.
        seeds: of the study.
        contrasts: of the arms with the baseline, that know a seed variance; not empty.
        trials: how many have been run.
    """
    basis = f"variances of this study's {trials} trials so far, of the hardest arm"
    return _estimate_power(metric, unit, seeds, contrasts, len(contrasts), basis)


def power_from_assumptions(
    metric: str, unit: str, seeds: int, items: int, arms: int, assumed: Assumptions
) -> PowerEstimate:
    """Return what seeds buy if a metric in percent varies as assumed.

    An item's outcome is yes or no with the assumed rate p: its variance is p(100 − p) in squared
    points. Two arms' outcomes on an item correlate by r, and what they do not share is no luck of
    a seed: V_item = 2p(100 − p)(1 − r)/N, V_res = 0. With S seeds of deviation σ, V_seed = 2σ²/S.

    Args:
        metric: the primary metric.
        unit: of its differences.
        seeds: of the study.
        items: of the benchmark.
        arms: of the study, two at least.
        assumed: rate, correlation and deviation.
    """
    v_item = 2 * assumed.rate * (100 - assumed.rate) * (1 - assumed.correlation) / items
    contrast = _assumed_contrast(
        v_seed=2 * assumed.seed_sd**2 / 2, v_item=v_item, items=items, arms=arms
    )
    basis = (
        f"assumed: a rate of {assumed.rate:g} %, outcomes of two arms correlated by "
        f"{assumed.correlation:g}, a standard deviation of {assumed.seed_sd:g} points between seeds"
    )
    return _estimate_power(metric, unit, seeds, [contrast], arms - 1, basis)


def _estimate_power(
    metric: str, unit: str, seeds: int, contrasts: Sequence[Contrast], comparisons: int, basis: str
) -> PowerEstimate:
    """Return what seeds buy on the contrast that is the hardest to see."""
    return PowerEstimate(
        metric=metric,
        unit=unit,
        items=contrasts[0].units,
        comparisons=comparisons,
        differences=tuple(
            (k, max(detectable_difference(entry, k, family=comparisons) for entry in contrasts))
            for k in sorted({*SEED_COUNTS, seeds} - {1})
        ),
        basis=basis,
    )


def _assumed_contrast(*, v_seed: float, v_item: float, items: int, arms: int) -> Contrast:
    """Return a difference of two arms with two seeds each and given variances."""
    variance = v_seed + v_item
    return Contrast(
        estimate=0.0,
        kind="seeds_and_items",
        v_seed=v_seed,
        v_item=v_item,
        v_res=0.0,
        variance=variance,
        se=variance**0.5,
        df=None,
        p=None,
        p_equivalence=None,
        interval=None,
        guard=False,
        seed_share=None,
        blocked=False,
        borrowed=False,
        pooled=arms,
        seeds=2.0,
        units=items,
        df_seed=float(arms),
    )
