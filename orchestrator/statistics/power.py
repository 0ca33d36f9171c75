"""What more seeds would buy.

k seeds of every cell; T, R and I the parts of a contrast's variance that are the seeds', the
seed-by-item noise and the items'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from orchestrator.statistics.contrast import Contrast, satterthwaite
from orchestrator.statistics.values import Array

#: A seed variance from few seeds is itself uncertain: the range is for this share of it.
_RANGE = 0.80


@dataclass(frozen=True, kw_only=True)
class SeedsNeeded:
    """Seeds of every cell, as a range; None is more than were looked at, or never."""

    low: int | None
    likely: int | None
    high: int | None
    most: int  # seeds looked at
    items_forbid: bool  # at the likely variance, items alone leave too much open

    @property
    def words(self) -> str:
        """What a report says."""
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
    """Return how many seeds would find a difference of `target`.

    The smallest k for which target ≥ (t_{1−alpha/2·family} + t_power)·√V(k), with
    V(k) = (T + R)/k + I and its degrees of freedom at k seeds. A range, since the seed variance is
    known to a factor only: `low` and `high` belong to the ends of its 80 % interval.
    (docs/statistics.md, "How many seeds")

    Args:
        found: a contrast that knows a seed variance.
        target: the difference to be found, in the contrast's unit; its sign does not matter.
        family: comparisons that are corrected together.
        alpha: the level of the test.
        power: the chance of finding it.
        most: how many seeds to look at.

    Raises:
        ValueError: the contrast knows no seed variance, the target is 0 or not finite, or `family`
            or `most` is too small.
    """
    if not (np.isfinite(target) and target):
        raise ValueError(f"target is {target}: give a difference other than 0")
    if most < 2:
        raise ValueError(f"most is {most}: look at two seeds or more")
    low, high = _variance_range(found)
    likely = _smallest(found, target, 1.0, family, alpha, power, most)
    return SeedsNeeded(
        low=_smallest(found, target, low, family, alpha, power, most),
        likely=likely,
        high=_smallest(found, target, high, family, alpha, power, most),
        most=most,
        items_forbid=likely is None and _items_forbid(found, target, family, alpha, power),
    )


def detectable_difference(
    found: Contrast, seeds: int, *, family: int = 1, alpha: float = 0.05, power: float = 0.80
) -> float:
    """Return the difference that `seeds` seeds of every cell would find, in the contrast's unit.

    `family`, `alpha` and `power` are as in `seeds_needed`.

    Raises:
        ValueError: fewer than two seeds, or the contrast knows no seed variance.
    """
    if seeds < 2:
        raise ValueError(f"{seeds} seed: without a second one no difference is tested")
    return float(_reach(found, np.array([seeds]), 1.0, family, alpha, power)[0])


def _parts(found: Contrast, factor: float) -> tuple[float, float, float]:
    """Return T, R and I for a seed variance `factor` times the one found."""
    if found.v_seed is None or found.v_res is None:
        raise ValueError("the contrast knows no seed variance: run a second seed first")
    training = max(found.v_seed * factor - found.v_res, 0.0) * found.seeds
    return training, found.v_res * found.seeds, max(found.v_item - found.v_res, 0.0)


def _reach(
    found: Contrast, k: Array, factor: float, family: int, alpha: float, power: float
) -> Array:
    """Return the difference found with k seeds, for every k of an array."""
    training, residual, items = _parts(found, factor)
    v_seed = (training + residual) / k
    cells = found.pooled - 1 if found.blocked else found.pooled
    df = satterthwaite(v_seed + items, v_seed, items + residual / k, cells * (k - 1), found.units)
    return np.asarray(_quantiles(df, family, alpha, power) * np.sqrt(v_seed + items))


def _smallest(
    found: Contrast,
    target: float,
    factor: float,
    family: int,
    alpha: float,
    power: float,
    most: int,
) -> int | None:
    k = np.arange(2, most + 1)
    enough = np.flatnonzero(_reach(found, k, factor, family, alpha, power) <= abs(target))
    return int(k[enough[0]]) if len(enough) else None


def _items_forbid(
    found: Contrast, target: float, family: int, alpha: float, power: float
) -> bool:
    """Return whether the difference stays out of reach with endless seeds."""
    _, _, items = _parts(found, 1.0)
    if not items:
        return False
    return float(_quantiles(found.units - 1, family, alpha, power)) * items**0.5 >= abs(target)


def _quantiles(df: ArrayLike, family: int, alpha: float, power: float) -> Array:
    if family < 1:
        raise ValueError(f"family is {family}: a comparison is at least one")
    return np.asarray(stats.t.ppf(1 - alpha / (2 * family), df) + stats.t.ppf(power, df))


def _variance_range(found: Contrast) -> tuple[float, float]:
    """Return the ends of the seed variance's interval, as multiples of it."""
    if found.df_seed is None:
        raise ValueError("the contrast knows no seed variance: run a second seed first")
    tail = (1 - _RANGE) / 2
    low, high = (found.df_seed / stats.chi2.ppf(q, found.df_seed) for q in (1 - tail, tail))
    return float(low), float(high)
