"""Correct a judge's mean by human labels of some of its items: prediction-powered inference.

N items, on each of which a judge's value f̄ is known; of a random subset of n the human label y is
known too, and the judge's value f of the very answer that was labelled (f = f̄ where an item has
one answer; else f̄ is the mean over the item's answers, of which one or some were labelled). With
L the labelled items, U the others, and g = f − (n/N)·f̄:

    θ(λ) = mean_L(y − λ·g) + λ·Σ_U f̄/N      (= mean_L(y) − λ·(mean_L(f) − mean_all(f̄)))

which is unbiased for the mean label whatever the judge is worth. λ = 0 is the labels alone, λ = 1
the judge's mean plus the mean error of the labelled. The terms of different items are independent:

    V(λ) = var_L(y − λ·g)/n + λ²·(N − n)/N²·var_U(f̄),
    λ* = cov_L(y, g)/(var(g) + n·(N − n)/N²·var(f̄)), cut to 0 … 1.

Source: A. N. Angelopoulos, J. C. Duchi, T. Zrnic, PPI++: Efficient Prediction-Powered Inference,
arXiv 2311.01453 (2023), the mean with power tuning; where f = f̄, λ here is (1 + n/(N − n)) times
λ̂ there, which is the slope of y on f. Ours are the corrections for few labels: var_L has n − 2
degrees of freedom, since λ was chosen, and counts `PSEUDO_LABELS` labels more of which the judge
knows nothing, since a good judge's errors are so few that their variance is badly known; t with
Satterthwaite's degrees of freedom. Coverage by simulation is in docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.values import Array

PSEUDO_LABELS = 3
_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A mean and its 95 % interval over items."""

    value: float
    interval: tuple[float, float] | None  # None: too few values, or all alike


@dataclass(frozen=True, kw_only=True)
class PredictionPowered:
    """A judge's mean, its correction by human labels, and the mean of the labels alone."""

    corrected: MeanEstimate
    raw: MeanEstimate  # the judge's mean
    labels_only: MeanEstimate
    power: float  # λ, from 0, the judge is ignored, to 1
    labelled: int  # n
    items: int  # N


def prediction_powered_mean(
    items: ArrayLike, labelled: ArrayLike, labels: ArrayLike, judged: ArrayLike | None = None
) -> PredictionPowered:
    """Estimate the mean that people would give all items.

    Args:
        items: (N,) the judge's value of each item.
        labelled: (n,) indices of the labelled items, without repeats: a random subset.
        labels: (n,) human labels of these, on the judge's scale.
        judged: (n,) the judge's values of the labelled answers; None: those of the items.

    Raises:
        ValueError: the arrays do not fit, are empty or not finite, or an item is named twice.
    """
    every = _vector(items, "items")
    chosen = np.asarray(labelled)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError("labelled is no list of places in items")
    if len(np.unique(chosen)) < len(chosen) or not ((chosen >= 0) & (chosen < len(every))).all():
        raise ValueError("labelled names an item twice, or one that is not there")
    y = _vector(labels, "labels")
    own = every[chosen]
    f = own if judged is None else _vector(judged, "judged")
    if not len(chosen) == len(y) == len(f):
        raise ValueError(f"{len(chosen)} labelled items, {len(y)} labels, {len(f)} judged")
    rest = np.delete(every, chosen)
    n, whole = len(y), len(every)
    g = f - n / whole * own
    power = _power(y, g, own, every)
    residual = y - power * g
    value = float(residual.mean() + power * rest.sum() / whole)
    interval = _interval(value, y, residual, power * rest / whole) if n > 2 else None
    return PredictionPowered(
        corrected=MeanEstimate(value=value, interval=interval),
        raw=plain_mean(every),
        labels_only=plain_mean(y),
        power=power,
        labelled=n,
        items=whole,
    )


def plain_mean(values: ArrayLike) -> MeanEstimate:
    """Return the mean of (n,) values with its t interval."""
    each = _vector(values, "values")
    mean, n = float(each.mean()), len(each)
    variance = float(each.var(ddof=1)) / n if n > 1 else 0.0
    return MeanEstimate(
        value=mean, interval=_around(mean, variance, n - 1) if variance > 0 else None
    )


def _power(y: Array, g: Array, own: Array, every: Array) -> float:
    """Return λ; 0 if the judge gives all items the same value, or all are labelled."""
    n, whole = len(y), len(every)
    share = 1 - n / whole
    if n < 3 or not share:
        return 0.0
    # var(g), with the part due to f̄ computed over all items, which is more precise.
    of_answers = max(0.0, float(g.var(ddof=1) - (share * own).var(ddof=1)))
    spread = of_answers + (share**2 + n * share / whole) * float(every.var(ddof=1))
    if spread == 0:
        return 0.0
    return min(1.0, max(0.0, float(np.cov(y, g)[0, 1]) / spread))


def _interval(value: float, y: Array, residual: Array, others: Array) -> tuple[float, float] | None:
    """Return the interval from the labelled items' residuals and the others' contributions."""
    n, freedom = len(y), len(y) - 2
    squares = float(((residual - residual.mean()) ** 2).sum())
    spread = (squares + PSEUDO_LABELS * float(y.var(ddof=1))) / (freedom + PSEUDO_LABELS)
    of_labelled = spread / n
    of_others = len(others) * float(others.var(ddof=1)) if len(others) > 1 else 0.0
    variance = of_labelled + of_others
    if variance == 0:
        return None
    df = variance**2 / (
        of_labelled**2 / freedom + (of_others**2 / (len(others) - 1) if of_others else 0.0)
    )
    return _around(value, variance, df)


def _around(mean: float, variance: float, df: float) -> tuple[float, float]:
    from scipy.stats import t  # takes half a second, and most commands do not need it

    half = float(t.ppf(1 - _ALPHA / 2, df)) * math.sqrt(variance)
    return mean - half, mean + half


def _vector(given: ArrayLike, name: str) -> Array:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} is no list of finite numbers, or empty")
    return values
