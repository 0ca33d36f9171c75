"""Estimate a weighted difference between cells, with its uncertainty.

C cells, S_c seeds of cell c, N units (items, or clusters of items that are not independent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.values import Array, Mask, validate_cells
from orchestrator.analysis.variance import (
    MIN_BLOCK_CELLS,
    VarianceEstimate,
    pool_seed_variance,
    residual_mean_square,
    validate_mask,
)

#: What an interval covers. `seeds_only`: no item outcomes, so items are taken as fixed.
#: `estimate_only`: neither seeds nor items, so there is no interval at all.
ContrastKind = Literal["seeds_and_items", "items_only", "seeds_only", "estimate_only"]

_GUARD_LEVEL = 0.90


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A contrast with its variance components and its test.

    Estimate, se and interval are in the values' unit, variances in its square. What is undefined is
    None: `v_seed` and `v_res` without a cell of two seeds, `p` without a known training variance,
    test and interval if nothing varies.
    """

    estimate: float
    kind: ContrastKind
    v_seed: float | None
    v_item: float
    v_res: float | None
    variance: float | None
    se: float | None
    df: float | None
    p: float | None  # two-sided, of no difference
    p_equivalence: float | None  # of a difference of delta or more; None without delta
    interval: tuple[float, float] | None  # of 1 - alpha
    guard: bool  # whether v_seed is the contrast's cells' own, as they scatter more
    seed_share: float | None  # share of the variance that is not due to items
    blocked: bool  # whether shared random numbers were used
    borrowed: bool  # whether a cell has one seed and takes the others' variance
    pooled: int  # number of cells that share the seed variance
    seeds: float  # per cell; the weighted harmonic mean if they differ
    units: int
    df_seed: float | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes to show with the figure."""
        conditions = {
            "items only: this says nothing of training variance": self.kind == "items_only",
            "benchmark items treated as fixed": self.kind == "seeds_only",
            "one seed and no item outcomes: no interval": self.kind == "estimate_only",
            "a cell has one seed: its seed variance is borrowed from the others": self.borrowed,
            "these cells scatter more between seeds than the others": self.guard,
        }
        return tuple(note for note, holds in conditions.items() if holds)


def contrast(
    values: Sequence[ArrayLike],
    weights: ArrayLike,
    *,
    blocked: bool,
    pool: ArrayLike | None = None,
    delta: float | None = None,
    alpha: float = 0.05,
) -> Contrast:
    """Estimate Σ w_c·(mean of cell c) and test it against 0.

    Two sources of variance are kept apart: training seed and benchmark item. The seed variance is
    pooled over cells, unless the contrast's own cells scatter clearly more (the guard).
    (docs/statistics.md, "A contrast")

    Args:
        values: (S_c, N) of each cell, row s a seed, column i the same unit in every cell; see
            `pseudo_values`. N = 1 stands for "no item outcomes": the seeds' metrics themselves.
        weights: (C,), Σ w = 0; a cell of weight 0 serves the pool only.
        blocked: row s of every cell drew the same random numbers. Used where the cells form a
            complete block of at least four; else the contrast is unblocked.
        pool: mask (C,) of the cells that share the seed variance; None: all. Of these, cells with
            at least two seeds are pooled. See `report_pool`.
        delta: the smallest difference that matters, in the values' unit, for the equivalence test.
        alpha: the interval covers 1 − alpha.

    Raises:
        ValueError: the cells are not such arrays, the weights do not fit them, do not add up to 0
            or are all 0, `pool` is no mask, `delta` is not above 0 or `alpha` not between 0 and 1.
    """
    cells = validate_cells(values)
    w = _validate_weights(weights, len(cells))
    if delta is not None and not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta is {delta}: give a difference above 0, or None")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}: give a probability, such as 0.05")
    seeds = np.array([len(cell) for cell in cells])
    used = w != 0
    pooled = validate_mask(pool, len(cells)) & (seeds > 1)
    use_block = (
        blocked and int(pooled.sum()) >= MIN_BLOCK_CELLS and len(set(seeds[pooled | used])) == 1
    )

    units = cells[0].shape[1]
    noise = _rounding_variance(cells, w)
    estimate = float(sum(w[c] * cells[c].mean() for c in np.flatnonzero(w)))
    by_unit: Array = np.sum([w[c] * cells[c].mean(axis=0) for c in np.flatnonzero(w)], axis=0)
    v_item = _zero_below_noise(float(by_unit.var(ddof=1)) / units, noise) if units > 1 else 0.0
    training = _estimate_seed_component(cells, w, pooled, use_block, noise)
    variance, df = _combine_variances(training, v_item, units)
    se = None if variance is None else variance**0.5
    shares = (w / np.abs(w).max()) ** 2
    shares /= shares.sum()
    tested = training is not None and bool(se)
    return Contrast(
        estimate=estimate,
        kind=_contrast_kind(training, units),
        v_seed=training.variance if training else None,
        v_item=v_item,
        v_res=training.residual if training else None,
        variance=variance,
        se=se,
        df=df,
        p=2 * _t_survival(abs(estimate) / se, df) if tested and se else None,
        p_equivalence=_equivalence_p(estimate, se, df, delta) if tested and se else None,
        interval=t_interval(estimate, se, df, alpha),
        guard=training is not None and training.guard,
        seed_share=max(variance - v_item, 0.0) / variance if tested and variance else None,
        blocked=use_block,
        borrowed=training is not None and bool((seeds[used] == 1).any()),
        pooled=int(pooled.sum()),
        seeds=float(1 / (shares / seeds).sum()),
        units=units,
        df_seed=training.df if training else None,
    )


class _SeedComponent(NamedTuple):
    variance: float  # V_seed
    residual: float  # V_res
    df: float
    guard: bool


def _estimate_seed_component(
    cells: list[Array], w: Array, pooled: Mask, use_block: bool, noise: float
) -> _SeedComponent | None:
    """Return the seeds' part of the variance; None if no pooled cell has two seeds."""
    means = [cell.mean(axis=1) for cell in cells]
    used = w != 0

    def spread_over(mask: Mask) -> VarianceEstimate | None:
        return pool_seed_variance([means[c] for c in np.flatnonzero(mask)], blocked=use_block)

    shared = spread_over(pooled)
    if shared is None:
        return None
    inflation = float(sum(w[c] ** 2 / len(means[c]) for c in np.flatnonzero(w)))  # K
    chosen = VarianceEstimate(inflation * shared.variance, shared.df)
    outside = pooled & ~used
    other_cells = spread_over(outside if outside.sum() > 1 else pooled)
    contrast_cells = _contrast_seed_variance(means, w, use_block)
    guard = False
    if (
        contrast_cells is not None
        and other_cells is not None
        and contrast_cells.variance > max(chosen.variance, noise)
    ):
        # The cells do not share the pool's variance if their own would be rare among the others.
        from scipy import stats

        limit = float(stats.f.ppf(_GUARD_LEVEL, contrast_cells.df, other_cells.df))
        guard = contrast_cells.variance > inflation * other_cells.variance * limit
    if guard and contrast_cells is not None:
        chosen = contrast_cells
    residual = _residual_variance(cells, w, pooled, use_block)
    return _SeedComponent(
        _zero_below_noise(chosen.variance, noise),
        _zero_below_noise(residual, noise),
        chosen.df,
        guard,
    )


def _validate_weights(weights: ArrayLike, cells: int) -> Array:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (cells,) or not np.isfinite(w).all():
        raise ValueError(f"weights of shape {w.shape} for {cells} cells: give one for each")
    if not w.any():
        raise ValueError("weights are all 0: there is nothing to compare")
    if abs(w.sum()) > 1e-9 * np.abs(w).sum():
        raise ValueError(f"weights add up to {w.sum():g}: those of a contrast add up to 0")
    return w


def _rounding_variance(cells: list[Array], w: Array) -> float:
    """Return the variance that rounding alone can make of constant values."""
    scale = np.abs(w).sum() * max(float(np.abs(cell).max()) for cell in cells)
    return float((32 * np.finfo(np.float64).eps * scale) ** 2)


def _zero_below_noise(variance: float, noise: float) -> float:
    return variance if variance > noise else 0.0


def _contrast_seed_variance(
    means: list[Array], w: Array, use_block: bool
) -> VarianceEstimate | None:
    """Return V_own and d_own; None if a cell of the contrast has one seed."""
    cells = np.flatnonzero(w)
    if any(len(means[c]) == 1 for c in cells):
        return None
    if use_block:
        by_seed: Array = np.sum([w[c] * means[c] for c in cells], axis=0)
        return VarianceEstimate(float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1)
    parts = np.array([w[c] ** 2 * means[c].var(ddof=1) / len(means[c]) for c in cells])
    if not parts.any():
        return VarianceEstimate(0.0, 1.0)
    dofs = np.array([len(means[c]) - 1 for c in cells])
    shares = parts / parts.sum()  # Welch's degrees of freedom
    return VarianceEstimate(float(parts.sum()), float(1 / (shares**2 / dofs).sum()))


def _residual_variance(cells: list[Array], w: Array, pooled: Mask, use_block: bool) -> float:
    """Return V_res: the seed-by-item noise that is part of both V_seed and V_item."""
    units = cells[0].shape[1]
    if use_block:
        difference: Array = np.sum([w[c] * cells[c] for c in np.flatnonzero(w)], axis=0)
        return residual_mean_square(difference) / float(units * len(difference))
    total = 0.0
    for c in np.flatnonzero(w):
        if len(cells[c]) > 1:
            square = residual_mean_square(cells[c])
        else:
            square = float(
                np.mean([residual_mean_square(cells[p]) for p in np.flatnonzero(pooled)])
            )
        total += float(w[c]) ** 2 * square / (units * len(cells[c]))
    return total


def _combine_variances(
    training: _SeedComponent | None, v_item: float, units: int
) -> tuple[float | None, float | None]:
    """Return V and its degrees of freedom, each None if undefined."""
    if training is None:
        return (v_item, units - 1.0 if v_item else None) if units > 1 else (None, None)
    variance = max(training.variance + v_item - training.residual, v_item, training.variance)
    if not variance:
        return 0.0, None
    return variance, float(satterthwaite(variance, training.variance, v_item, training.df, units))


def satterthwaite(
    variance: ArrayLike, v_seed: ArrayLike, v_item: ArrayLike, df_seed: ArrayLike, units: int
) -> Array:
    """Return df = max(1, V²/(V_seed²/d_s + V_item²/(N−1))); infinite if V is 0."""
    parts = np.square(v_seed) / df_seed
    if units > 1:
        parts = parts + np.square(v_item) / (units - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(parts > 0, np.square(variance) / parts, np.inf)
    return np.maximum(1.0, df)


def _contrast_kind(training: _SeedComponent | None, units: int) -> ContrastKind:
    if training is None:
        return "items_only" if units > 1 else "estimate_only"
    return "seeds_and_items" if units > 1 else "seeds_only"


def _equivalence_p(
    estimate: float, se: float, df: float | None, delta: float | None
) -> float | None:
    """Return the larger one-sided p of "at or below −delta" and "at or above delta"."""
    return None if delta is None else _t_survival((delta - abs(estimate)) / se, df)


def _t_survival(value: float, df: float | None) -> float:
    """Return the probability that Student's t is above a value."""
    from scipy import stats  # takes half a second, and most commands do not need it

    return float(stats.t.sf(value, df))


def t_interval(
    estimate: float, se: float | None, df: float | None, alpha: float = 0.05
) -> tuple[float, float] | None:
    """Return Student's interval of 1 − alpha; None if nothing varies or `df` is unknown."""
    if not se or df is None:
        return None
    from scipy import stats

    half = float(stats.t.ppf(1 - alpha / 2, df)) * se
    return estimate - half, estimate + half
