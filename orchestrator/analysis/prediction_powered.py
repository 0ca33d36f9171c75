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
λ̂ there, which is the slope of y on f. θ and λ are the paper's; the interval's V is corrected for
few labels, of which a rare value or a good judge's errors are a handful, so that their variance is
badly known, and is small just where θ is too:

- m pseudo-labels are counted, of which the judge knows nothing: one at each end of the scale. Of a
  difference of two answers, whose ends are rarer, one in all: a quarter at each end, half in the
  middle. A. Agresti, B. A. Coull, The American Statistician 52 (1998), 119–126, add twice as many
  for a proportion, A. Agresti, Y. Min, Statistics in Medicine 24 (2005), 729–740, for matched
  pairs; both go by the normal distribution and move the figure, which stays here.
- Residuals have n − 2 degrees of freedom, since λ was chosen: with e the n + m residuals,
  Σ(e − ē)²/((n + m − 2)(n + m)) takes the place of var_L(y − λ·g)/n.
- The quantile is t's, with Satterthwaite's degrees of freedom, of n − 2 and N − n − 1.

Coverage by simulation is in docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.contrast import t_interval
from orchestrator.analysis.values import Array


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A mean and its 95 % interval over items."""

    value: float
    interval: tuple[float, float] | None  # None: too few values, or all alike


@dataclass(frozen=True, kw_only=True)
class PredictionPoweredEstimate:
    """A judge's mean, its correction by human labels, and the mean of the labels alone."""

    corrected: MeanEstimate
    raw: MeanEstimate  # the judge's mean
    labels_only: MeanEstimate
    power: float  # λ, from 0, the judge is ignored, to 1
    labelled: int  # n
    items: int  # N


def prediction_powered_mean(
    items: ArrayLike,
    labelled: ArrayLike,
    labels: ArrayLike,
    judged: ArrayLike | None = None,
    *,
    paired: bool = False,
) -> PredictionPoweredEstimate:
    """Estimate the mean that people would give all items.

    Args:
        items: (N,) the judge's value of each item.
        labelled: (n,) indices of the labelled items, without repeats: a random subset.
        labels: (n,) human labels of these, on the judge's scale.
        judged: (n,) the judge's values of the labelled answers; None: those of the items.
        paired: whether a value is a difference of two answers.

    Raises:
        ValueError: the arrays do not fit, are empty or not finite, or an item is named twice.
    """
    item_values = _to_vector(items, "items")
    indices = np.asarray(labelled)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError("labelled is not a list of indices of items")
    if (
        len(np.unique(indices)) < len(indices)
        or not ((indices >= 0) & (indices < len(item_values))).all()
    ):
        raise ValueError("labelled has an item twice, or one that does not exist")
    y = _to_vector(labels, "labels")
    labelled_values = item_values[indices]
    f = labelled_values if judged is None else _to_vector(judged, "judged")
    if not len(indices) == len(y) == len(f):
        raise ValueError(f"{len(indices)} labelled items, {len(y)} labels, {len(f)} judged")
    unlabelled_values = np.delete(item_values, indices)
    n, item_count = len(y), len(item_values)
    g = f - n / item_count * labelled_values
    power = _tune_power(y, g, labelled_values, item_values)
    residual = y - power * g
    value = float(residual.mean() + power * unlabelled_values.sum() / item_count)
    interval = None
    if n > 2 and y.min() < y.max():  # labels that are all alike tell of no spread
        pseudo = _make_pseudo_labels(np.concatenate([item_values, f, y]), paired)
        pseudo = replace(pseudo, mean=pseudo.mean - power * float(g.mean()))
        interval = _corrected_interval(
            value, residual, pseudo, power * unlabelled_values / item_count
        )
    return PredictionPoweredEstimate(
        corrected=MeanEstimate(value=value, interval=interval),
        raw=sample_mean(item_values),
        labels_only=sample_mean(y),
        power=power,
        labelled=n,
        items=item_count,
    )


def sample_mean(values: ArrayLike) -> MeanEstimate:
    """Return the mean of (n,) values with its t interval."""
    vector = _to_vector(values, "values")
    mean, n = float(vector.mean()), len(vector)
    variance = float(vector.var(ddof=1)) / n if n > 1 else 0.0
    return MeanEstimate(value=mean, interval=t_interval(mean, math.sqrt(variance), n - 1))


def _tune_power(y: Array, g: Array, labelled_values: Array, item_values: Array) -> float:
    """Return λ; 0 if the judge gives all items the same value, or all are labelled."""
    n, item_count = len(y), len(item_values)
    unlabelled_share = 1 - n / item_count
    if n < 3 or not unlabelled_share:
        return 0.0
    # var(g), with the part due to f̄ computed over all items, which is more precise.
    answer_variance = max(
        0.0, float(g.var(ddof=1) - (unlabelled_share * labelled_values).var(ddof=1))
    )
    judge_variance = answer_variance + (
        unlabelled_share**2 + n * unlabelled_share / item_count
    ) * float(item_values.var(ddof=1))
    if judge_variance == 0:
        return 0.0
    return min(1.0, max(0.0, float(np.cov(y, g)[0, 1]) / judge_variance))


@dataclass(frozen=True, kw_only=True)
class _PseudoLabels:
    """Pseudo-labels, or their residuals once the judge's part is subtracted."""

    count: float
    mean: float
    squares: float  # Σ(value − mean)²


def _make_pseudo_labels(values: Array, paired: bool) -> _PseudoLabels:
    """Return the pseudo-labels on the scale that people and judge used."""
    low, high = float(values.min()), float(values.max())
    end_weight = 0.5 if paired else 2.0  # the others lie in the middle
    return _PseudoLabels(
        count=1.0 if paired else 2.0,
        mean=(low + high) / 2,
        squares=end_weight * ((high - low) / 2) ** 2,
    )


def _corrected_interval(
    value: float, residual: Array, pseudo: _PseudoLabels, contributions: Array
) -> tuple[float, float] | None:
    """Return the interval from the labelled items' residuals and the others' contributions."""
    n, m = len(residual), pseudo.count
    mean, residual_df = float(residual.mean()), n - 2
    squares = float(((residual - mean) ** 2).sum()) + pseudo.squares
    squares += n * m / (n + m) * (pseudo.mean - mean) ** 2
    labelled_variance = squares / ((residual_df + m) * (n + m))
    other_variance = (
        len(contributions) * float(contributions.var(ddof=1)) if len(contributions) > 1 else 0.0
    )
    variance = labelled_variance + other_variance
    df = variance**2 / (
        labelled_variance**2 / residual_df
        + (other_variance**2 / (len(contributions) - 1) if other_variance else 0.0)
    )
    return t_interval(value, math.sqrt(variance), df)


def _to_vector(data: ArrayLike, name: str) -> Array:
    values = np.asarray(data, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} is not a list of finite numbers, or empty")
    return values
