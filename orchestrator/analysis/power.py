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
_RANGE = 0.80


@dataclass(frozen=True, kw_only=True)
class SeedsNeeded:
    """Seeds of every cell, as a range. None means more than `most`, or no number suffices."""

    low: int | None
    likely: int | None
    high: int | None
    most: int  # largest number of seeds considered
    items_forbid: bool  # at the likely variance, the items' part alone is too large

    @property
    def words(self) -> str:
        """The result in words."""
        if self.items_forbid:
            return "no number of seeds suffices; more items"
        if self.likely is None:
            return f"more than {self.most} seeds"
        high = f"more than {self.most}" if self.high is None else str(self.high)
        return f"about {self.likely} seeds ({self.low} to {high})"


def seeds_needed(
    found: Contrast,
    target: float,
    *,
    family: int = 1,
    alpha: float = 0.05,
    power: float = 0.80,
    most: int = 1000,
) -> SeedsNeeded:
    """Return how many seeds are needed to find a difference of `target`.

    This is the smallest k for which target ≥ (t_{1−alpha/2·family} + t_power)·√V(k), with
    V(k) = (T + R)/k + I and its degrees of freedom at k seeds. It is a range, since the seed
    variance is uncertain: `low` and `high` belong to the ends of its 80 % interval.
    (docs/statistics.md, "How many seeds")

    Args:
        found: a contrast with a seed variance.
        target: the difference to find, in the contrast's unit; its sign does not matter.
        family: number of comparisons that are corrected together.
        alpha: significance level of the test.
        power: probability of finding the difference.
        most: largest number of seeds to consider.

    Raises:
        ValueError: the contrast has no seed variance, the target is 0 or not finite, `family` or
            `most` is too small, or a level is not between 0 and 1.
    """
    test = _Test(family=family, alpha=alpha, power=power)
    if not (np.isfinite(target) and target):
        raise ValueError(f"target is {target}: give a difference other than 0")
    if most < 2:
        raise ValueError(f"most is {most}: look at two seeds or more")
    k = np.arange(2, most + 1, dtype=np.float64)

    def smallest(parts: _Parts) -> int | None:
        enough = np.flatnonzero(_reach(found, parts, test, k) <= abs(target))
        return int(k[enough[0]]) if len(enough) else None

    parts = _parts(found)
    likely = smallest(parts)
    low, high = _variance_range(found)
    endless = float(test.quantiles(max(found.units - 1, 1))) * parts.items**0.5
    return SeedsNeeded(
        low=smallest(_parts(found, low)),
        likely=likely,
        high=smallest(_parts(found, high)),
        most=most,
        items_forbid=likely is None and parts.items > 0 and endless >= abs(target),
    )


def detectable_difference(
    found: Contrast, seeds: int, *, family: int = 1, alpha: float = 0.05, power: float = 0.80
) -> float:
    """Return the difference that `seeds` seeds of every cell would find, in the contrast's unit.

    `family`, `alpha` and `power` are as in `seeds_needed`.

    Raises:
        ValueError: fewer than two seeds, or as in `seeds_needed`.
    """
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}: no difference is tested with fewer than two")
    test = _Test(family=family, alpha=alpha, power=power)
    return float(_reach(found, _parts(found), test, np.array([float(seeds)]))[0])


@dataclass(frozen=True, kw_only=True)
class _Test:
    family: int
    alpha: float
    power: float

    def __post_init__(self) -> None:
        if self.family < 1:
            raise ValueError(f"family is {self.family}: a comparison is at least one")
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a probability")

    def quantiles(self, df: ArrayLike) -> Array:
        """Return how many standard errors a detectable difference is."""
        from scipy import stats  # takes half a second, and most commands do not need it

        level = stats.t.ppf(1 - self.alpha / (2 * self.family), df)
        return np.asarray(level + stats.t.ppf(self.power, df))


@dataclass(frozen=True, kw_only=True)
class _Parts:
    training: float  # T, of one seed
    residual: float  # R, of one seed
    items: float  # I


def _parts(found: Contrast, factor: float = 1.0) -> _Parts:
    """Return the parts of the variance, with `factor` times the contrast's seed variance."""
    if found.v_seed is None or found.v_res is None:
        raise ValueError("the contrast knows no seed variance: run a second seed first")
    return _Parts(
        training=max(found.v_seed * factor - found.v_res, 0.0) * found.seeds,
        residual=found.v_res * found.seeds,
        items=max(found.v_item - found.v_res, 0.0),
    )


def _reach(found: Contrast, parts: _Parts, test: _Test, k: Array) -> Array:
    """Return the detectable differences (K,) with k seeds."""
    v_seed = (parts.training + parts.residual) / k
    v_item = parts.items + parts.residual / k
    variance = v_seed + parts.items
    df_seed = (found.pooled - 1 if found.blocked else found.pooled) * (k - 1)
    df = satterthwaite(variance, v_seed, v_item, df_seed, found.units)
    return np.asarray(test.quantiles(df) * np.sqrt(variance))


def _variance_range(found: Contrast) -> tuple[float, float]:
    """Return the ends of the seed variance's interval, as multiples of it."""
    from scipy import stats

    assert found.df_seed is not None
    tail = (1 - _RANGE) / 2
    low, high = (found.df_seed / stats.chi2.ppf(q, found.df_seed) for q in (1 - tail, tail))
    return float(low), float(high)
