"""Estimate the variance between seeds, pooled over cells that share it.

C cells, S_c seeds of cell c, N units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.values import Array, Mask, validate_cells

_MIN_OTHER_CELLS = 2


def report_pool(
    values: Sequence[ArrayLike],
    weights: ArrayLike,
    *,
    collapsed: ArrayLike | None = None,
    point: float = 1.0,
) -> Mask:
    """Return the mask of the cells whose seed variance a contrast may share.

    A rate's variance depends on its mean, so cells far from the contrast's are left out. The mask
    keeps cells that have not collapsed and whose mean is between half and twice the mean of the
    contrast's cells, and the contrast's cells themselves. If fewer than two others with at least
    two seeds are left, or the contrast's mean is below one point, all cells are kept.
    (docs/statistics.md, "The pool")

    Args:
        values: (S_c, N) of each of C cells.
        weights: (C,), weights of the contrast.
        collapsed: mask (C,) of cells whose training collapsed; None: none did.
        point: one percentage point in the values' unit: 1 for percent, 0.01 for fractions.

    Raises:
        ValueError: the values are not such arrays, or a mask or the weights do not fit them.
    """
    cells = validate_cells(values)
    used = np.asarray(weights, dtype=np.float64) != 0
    collapsed_mask = (
        np.zeros(len(cells), dtype=bool) if collapsed is None else np.asarray(collapsed, bool)
    )
    if used.shape != (len(cells),) or collapsed_mask.shape != (len(cells),) or not used.any():
        raise ValueError(f"weights or collapsed do not fit {len(cells)} cells: give one for each")
    means = np.array([cell.mean() for cell in cells])
    has_seeds = np.array([len(cell) > 1 for cell in cells])
    contrast_mean = float(means[used].mean())
    is_near = (means >= contrast_mean / 2) & (means <= contrast_mean * 2) & ~collapsed_mask
    others = is_near & ~used & has_seeds
    if contrast_mean < point or others.sum() < _MIN_OTHER_CELLS:
        return np.ones(len(cells), dtype=np.bool_)
    selected: Mask = is_near | used
    return selected


#: With fewer cells, a block has too few degrees of freedom for removing the seed means to pay.
MIN_BLOCK_CELLS = 4


class VarianceEstimate(NamedTuple):
    """A variance of seed means and its degrees of freedom."""

    variance: float
    df: float


def pool_seed_variance(means: Sequence[Array], *, blocked: bool) -> VarianceEstimate | None:
    """Return the pooled variance between seeds, s²_p.

    Args:
        means: seed means (S_c,) of each pooled cell.
        blocked: whether a seed's common effect on all cells is removed; requires equal S_c.

    Returns:
        None without degrees of freedom.
    """
    if blocked:
        grid = np.stack(means)
        df = float((grid.shape[0] - 1) * (grid.shape[1] - 1))
        squares = _interaction_sum_of_squares(grid)
    else:
        df = float(sum(len(mean) - 1 for mean in means))
        squares = sum(float(((mean - mean.mean()) ** 2).sum()) for mean in means)
    return VarianceEstimate(squares / df, df) if df else None


def residual_mean_square(values: Array) -> float:
    """Return the residual mean square of (S, N) values, S ≥ 2, beyond seed and unit effects.

    With a single unit it is 0.
    """
    seeds, units = values.shape
    if units == 1:
        return 0.0
    return _interaction_sum_of_squares(values) / float((seeds - 1) * (units - 1))


def seed_correlation(values: Sequence[ArrayLike], pool: ArrayLike | None = None) -> float | None:
    """Return r̂ = 1 − s²_blocked/s²_unblocked: how similarly a seed affects all cells.

    It is the gain of common random numbers: 0 is none, 1 means that differences between cells do
    not depend on the seed. As an estimate from few seeds it can be negative.
    (docs/statistics.md, "Common random numbers")

    Args:
        values: (S_c, N) of each cell, row s of every cell from the same seed.
        pool: mask (C,) of the cells to use; None: all.

    Returns:
        None if it cannot be estimated: fewer than two cells or seeds, unequal numbers of seeds, or
        no variation at all.

    Raises:
        ValueError: `values` are not such arrays, or `pool` is not a mask of the cells.
    """
    cells = validate_cells(values)
    mask = validate_mask(pool, len(cells))
    means = [cell.mean(axis=1) for cell, selected in zip(cells, mask, strict=True) if selected]
    if len(means) < 2 or len({len(mean) for mean in means}) > 1 or len(means[0]) < 2:
        return None
    blocked = pool_seed_variance(means, blocked=True)
    unblocked = pool_seed_variance(means, blocked=False)
    assert blocked is not None and unblocked is not None
    return 1.0 - blocked.variance / unblocked.variance if unblocked.variance > 0 else None


def validate_mask(pool: ArrayLike | None, cells: int) -> Mask:
    """Return a mask (C,) of booleans; None is all.

    Raises:
        ValueError: `pool` is not a mask of that many cells.
    """
    if pool is None:
        return np.ones(cells, dtype=np.bool_)
    mask = np.asarray(pool)
    if mask.shape != (cells,) or mask.dtype != np.bool_:
        raise ValueError(f"pool is not a mask: give {cells} booleans, one for each cell")
    return mask


def _interaction_sum_of_squares(table: Array) -> float:
    """Return Σ(x_ab − x̄_a − x̄_b + x̄)² of a table."""
    residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((residuals**2).sum())
