"""Distances between images, true and hallucinated descriptions. Pure numpy and scipy.

Shapes: N items, D hidden. Every interval is a percentile bootstrap over items (the unit: an image
with both its descriptions), 2,000 draws from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from chip_core.representation.states import Representations, Vectors

DRAWS = 2000
FOLDS = 5
_PENALTY = 1.0  # on the probe's squared weights, halved; inputs are standardised


@dataclass(frozen=True, kw_only=True)
class IntervalEstimate:
    """A metric's value and its 95 % interval over items."""

    value: float
    low: float
    high: float


def compute_distances(representations: Representations) -> dict[str, NDArray[np.float64]]:
    """Return each item's distances, (N,) each, by name.

    - `image_truth/…`, `image_hallucination/…`: between the image and a description.
    - `truth_hallucination/…`: between an item's two descriptions, their separation.
    - `nearer_truth/…`: how much nearer the image is to the true than to the hallucinated one.

    `cosine` is 1 − cos, from 0 to 2; `euclidean` is in the units of the hidden states: only compare
    it between models of one size.
    """
    pairs = {
        "image_truth": (representations.image, representations.true),
        "image_hallucination": (representations.image, representations.hallucinated),
        "truth_hallucination": (representations.true, representations.hallucinated),
    }
    values = {}
    for name, (first, second) in pairs.items():
        values[f"{name}/cosine"] = _cosine_distances(first, second)
        values[f"{name}/euclidean"] = np.linalg.norm(first - second, axis=1)
    for metric in ("cosine", "euclidean"):
        values[f"nearer_truth/{metric}"] = (
            values[f"image_hallucination/{metric}"] - values[f"image_truth/{metric}"]
        )
    return values


def compute_figures(
    models: Sequence[Representations], *, seed: int = 0
) -> dict[str, IntervalEstimate]:
    """Return the figures of a model, or of one arm's models, each trained with another seed.

    Several models are averaged item by item; the interval is over items only.

    Raises:
        ValueError: there are fewer than two items.
    """
    items = len(models[0].image)
    if items < 2:
        raise ValueError("at least two items are needed")
    random = np.random.default_rng(seed)
    counts = random.multinomial(items, np.full(items, 1 / items), size=DRAWS)  # (draws, N)
    model_distances = [compute_distances(model) for model in models]
    results = {}
    for name in model_distances[0]:
        values = np.mean([distances[name] for distances in model_distances], axis=0)
        results[name] = _estimate_interval(float(values.mean()), counts @ values / items)
    probes = [
        compute_probe_auc(model.true, model.hallucinated, counts, seed=seed) for model in models
    ]
    results["probe_auc"] = _estimate_interval(
        float(np.mean([value for value, _ in probes])),
        np.mean([draws for _, draws in probes], axis=0),
    )
    return results


def compute_probe_auc(
    true: Vectors, hallucinated: Vectors, counts: NDArray[np.int64], *, seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Return how well a linear probe separates the two kinds on held-out items.

    A logistic regression is fitted on four fifths of the items and scores the last fifth, five
    times; both descriptions of an item are in the same part. The AUC is computed on each fold's
    scores and averaged: 0.5 is chance, 1 is perfect separation.

    Args:
        true: (N, D).
        hallucinated: (N, D).
        counts: how often each item is in each draw of the bootstrap, (draws, N). The probe is not
            fitted again.
        seed: of the folds.

    Returns:
        The AUC, and that of each draw, (draws,).
    """
    items = len(true)
    order = np.random.default_rng([seed, 1]).permutation(items)
    folds = [fold for fold in np.array_split(order, min(FOLDS, items)) if len(fold)]
    values, draws = [], []
    for fold in folds:
        training_items = np.setdiff1d(order, fold)
        weights = _fit_probe(
            np.concatenate([true[training_items], hallucinated[training_items]]),
            len(training_items),
        )
        wins = _pairwise_wins(true[fold] @ weights, hallucinated[fold] @ weights)  # (n, n)
        values.append(float(wins.mean()))
        draws.append(_draw_aucs(wins, counts[:, fold].astype(float)))
    # A draw may leave a fold out; it is averaged over the others.
    return float(np.mean(values)), np.nanmean(draws, axis=0)


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Three directions in which all models are shown."""

    mean: Vectors  # (D,)
    axes: Vectors  # (3, D)
    explained: tuple[float, ...]  # share of the variance of each

    def project(self, vectors: Vectors) -> Vectors:
        """Return the coordinates of vectors, (N, 3)."""
        projected: Vectors = (vectors - self.mean) @ self.axes.T
        return projected


def compute_common_basis(models: Sequence[Representations]) -> Basis:
    """Return the first three principal components of all vectors of all models together.

    An axis's sign makes its largest entry positive, so that it is the same in every run.

    Raises:
        ValueError: the models' hidden sizes differ, or are below three.
    """
    if len({model.image.shape[1] for model in models}) > 1:
        raise ValueError("models of different hidden sizes have no common basis")
    rows = np.concatenate(
        [part for model in models for part in (model.image, model.true, model.hallucinated)]
    )
    if min(rows.shape) < 3:
        raise ValueError("three components need at least three vectors of three entries")
    mean = rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    axes = axes[:3]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(3), largest])[:, None]
    total = float((singular**2).sum()) or 1.0
    return Basis(
        mean=mean, axes=axes, explained=tuple(float(value**2) / total for value in singular[:3])
    )


def _cosine_distances(first: Vectors, second: Vectors) -> Vectors:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    distances: Vectors = 1 - (first * second).sum(axis=1) / np.maximum(norms, np.finfo(float).tiny)
    return distances


def _estimate_interval(value: float, draws: NDArray[np.float64]) -> IntervalEstimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return IntervalEstimate(value=value, low=float(low), high=float(high))


def _fit_probe(rows: Vectors, true_count: int) -> Vectors:
    """Return the probe's direction, (D,): the first `true_count` rows are true, the others not."""
    scale = rows.std(axis=0)
    scale[scale == 0] = 1.0
    inputs = (rows - rows.mean(axis=0)) / scale
    sign = np.where(np.arange(len(rows)) < true_count, 1.0, -1.0)

    def loss(weights: Vectors) -> tuple[float, Vectors]:
        margin = sign * (inputs @ weights)
        slope = -sign / (1 + np.exp(np.clip(margin, -500, 500)))
        value = np.logaddexp(0, -margin).sum() + _PENALTY / 2 * weights @ weights
        return float(value), inputs.T @ slope + _PENALTY * weights

    # Both kinds are equally frequent and the inputs centred, so a ranking needs no intercept.
    fitted = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B")
    direction: Vectors = np.divide(fitted.x, scale)
    return direction


def _pairwise_wins(true: Vectors, hallucinated: Vectors) -> NDArray[np.float64]:
    """Return 1 where a true one scores above a hallucinated one, 1/2 where equal, (n, n)."""
    difference = true[:, None] - hallucinated[None, :]
    return np.where(difference > 0, 1.0, np.where(difference == 0, 0.5, 0.0))


def _draw_aucs(wins: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the AUC of each draw, (draws,); NaN where it holds none of the items."""
    totals = counts.sum(axis=1) ** 2
    sums = ((counts @ wins) * counts).sum(axis=1)
    aucs: NDArray[np.float64] = np.full(len(counts), np.nan)
    np.divide(sums, totals, out=aucs, where=totals > 0)
    return aucs
