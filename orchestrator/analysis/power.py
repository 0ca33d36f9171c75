"""Estimate the power of more seeds.

k: seeds of every cell; T, R and I: the parts of a contrast's variance due to seeds, seed-by-item
noise and items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.contrast import Contrast, satterthwaite
from orchestrator.analysis.values import Array

#: A seed variance from few seeds is uncertain: the range is from its interval of this level.
_RANGE_LEVEL = 0.80


@dataclass(frozen=True, kw_only=True)
class SeedsNeeded:
    """Seeds of every cell, as a range. None means more than `max_seeds`, or no number suffices."""

    low: int | None
    likely: int | None
    high: int | None
    max_seeds: int  # largest number of seeds considered
    items_forbid: bool  # at the likely variance, the items' part alone is too large

    @property
    def text(self) -> str:
        """The result in words."""
        if self.items_forbid:
            return "no number of seeds suffices; more items"
        if self.likely is None:
            return f"more than {self.max_seeds} seeds"
        high = f"more than {self.max_seeds}" if self.high is None else str(self.high)
        return f"about {self.likely} seeds ({self.low} to {high})"


def seeds_needed(
    contrast: Contrast,
    target: float,
    *,
    family: int = 1,
    alpha: float = 0.05,
    power: float = 0.80,
    max_seeds: int = 1000,
) -> SeedsNeeded:
    """Return how many seeds are needed to find a difference of `target`.

    This is the smallest k for which target ≥ (t_{1−alpha/2·family} + t_power)·√V(k), with
    V(k) = (T + R)/k + I and its degrees of freedom at k seeds. It is a range, since the seed
    variance is uncertain: `low` and `high` belong to the ends of its 80 % interval.
    (docs/statistics.md, "How many seeds")

    Args:
        contrast: a contrast with a seed variance.
        target: the difference to find, in the contrast's unit; its sign does not matter.
        family: number of comparisons that are corrected together.
        alpha: significance level of the test.
        power: probability of finding the difference.
        max_seeds: largest number of seeds to consider.

    Raises:
        ValueError: the contrast has no seed variance, the target is 0 or not finite, `family` or
            `max_seeds` is too small, or a level is not between 0 and 1.
    """
    design = _TestDesign(family=family, alpha=alpha, power=power)
    if not (np.isfinite(target) and target):
        raise ValueError(f"target is {target}: give a difference other than 0")
    if max_seeds < 2:
        raise ValueError(f"max_seeds is {max_seeds}: give two seeds or more")
    k = np.arange(2, max_seeds + 1, dtype=np.float64)

    def smallest(parts: _VarianceParts) -> int | None:
        sufficient = np.flatnonzero(
            _detectable_differences(contrast, parts, design, k) <= abs(target)
        )
        return int(k[sufficient[0]]) if len(sufficient) else None

    parts = _split_variance(contrast)
    likely = smallest(parts)
    low, high = _variance_range(contrast)
    smallest_possible = float(design.quantiles(max(contrast.units - 1, 1))) * parts.items**0.5
    return SeedsNeeded(
        low=smallest(_split_variance(contrast, low)),
        likely=likely,
        high=smallest(_split_variance(contrast, high)),
        max_seeds=max_seeds,
        items_forbid=likely is None and parts.items > 0 and smallest_possible >= abs(target),
    )


def detectable_difference(
    contrast: Contrast, seeds: int, *, family: int = 1, alpha: float = 0.05, power: float = 0.80
) -> float:
    """Return the difference that `seeds` seeds of every cell would find, in the contrast's unit.

    `family`, `alpha` and `power` are as in `seeds_needed`.

    Raises:
        ValueError: fewer than two seeds, or as in `seeds_needed`.
    """
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}: no difference is tested with fewer than two")
    design = _TestDesign(family=family, alpha=alpha, power=power)
    return float(
        _detectable_differences(
            contrast, _split_variance(contrast), design, np.array([float(seeds)])
        )[0]
    )


@dataclass(frozen=True, kw_only=True)
class _TestDesign:
    family: int
    alpha: float
    power: float

    def __post_init__(self) -> None:
        if self.family < 1:
            raise ValueError(f"family is {self.family}: give at least one comparison")
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a probability")

    def quantiles(self, df: ArrayLike) -> Array:
        """Return how many standard errors a detectable difference is."""
        from scipy import stats  # takes half a second, and most commands do not need it

        level = stats.t.ppf(1 - self.alpha / (2 * self.family), df)
        return np.asarray(level + stats.t.ppf(self.power, df))


@dataclass(frozen=True, kw_only=True)
class _VarianceParts:
    training: float  # T, of one seed
    residual: float  # R, of one seed
    items: float  # I


def _split_variance(contrast: Contrast, factor: float = 1.0) -> _VarianceParts:
    """Return the parts of the variance, with `factor` times the contrast's seed variance."""
    if contrast.v_seed is None or contrast.v_res is None:
        raise ValueError("the contrast has no seed variance: run a second seed first")
    return _VarianceParts(
        training=max(contrast.v_seed * factor - contrast.v_res, 0.0) * contrast.seeds,
        residual=contrast.v_res * contrast.seeds,
        items=max(contrast.v_item - contrast.v_res, 0.0),
    )


def _detectable_differences(
    contrast: Contrast, parts: _VarianceParts, design: _TestDesign, k: Array
) -> Array:
    """Return the detectable differences (K,) with k seeds."""
    v_seed = (parts.training + parts.residual) / k
    v_item = parts.items + parts.residual / k
    variance = v_seed + parts.items
    df_seed = (contrast.pooled - 1 if contrast.blocked else contrast.pooled) * (k - 1)
    df = satterthwaite(variance, v_seed, v_item, df_seed, contrast.units)
    return np.asarray(design.quantiles(df) * np.sqrt(variance))


def _variance_range(contrast: Contrast) -> tuple[float, float]:
    """Return the ends of the seed variance's interval, as multiples of it."""
    from scipy import stats

    assert contrast.df_seed is not None
    tail = (1 - _RANGE_LEVEL) / 2
    low, high = (contrast.df_seed / stats.chi2.ppf(q, contrast.df_seed) for q in (1 - tail, tail))
    return float(low), float(high)
