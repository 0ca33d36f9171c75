"""Estimate the variance between seeds, pooled over cells.

C cells, S_c seeds of cell c, N units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.values import Array, Mask, checked_cells

#: A block of fewer cells has too few degrees of freedom to be worth its removal of seed means.
LEAST_BLOCK = 4


class Spread(NamedTuple):
    """A variance of seed means and its degrees of freedom."""

    variance: float
    df: float


def seed_spread(means: Sequence[Array], *, blocked: bool) -> Spread | None:
    """Return the pooled variance between seeds, s²_p.

    Args:
        means: seed means (S_c,) of each pooled cell.
        blocked: whether what a seed does to every cell alike is taken out; needs equal S_c.

    Returns:
        None where there are no degrees of freedom.
    """
    if blocked:
        grid = np.stack(means)
        freedom = float((grid.shape[0] - 1) * (grid.shape[1] - 1))
        squares = _interaction_squares(grid)
    else:
        freedom = float(sum(len(mean) - 1 for mean in means))
        squares = sum(float(((mean - mean.mean()) ** 2).sum()) for mean in means)
    return Spread(squares / freedom, freedom) if freedom else None


def residual_square(values: Array) -> float:
    """Return the mean square of what neither seed nor unit explains in (S, N) values; S ≥ 2.

    With a single unit nothing is left to explain: 0.
    """
    seeds, units = values.shape
    if units == 1:
        return 0.0
    return _interaction_squares(values) / float((seeds - 1) * (units - 1))


def seed_correlation(values: Sequence[ArrayLike], pool: ArrayLike | None = None) -> float | None:
    """Return r̂ = 1 − s²_blocked/s²_unblocked: how alike a seed acts on all cells.

    What common random numbers bought: 0 is nothing, 1 is that differences between cells do not
    depend on the seed. An estimate from few seeds; it can be negative.
    (docs/statistics.md, "Common random numbers")

    Args:
        values: (S_c, N) of each cell, row s of every cell from the same seed.
        pool: mask (C,) of the cells to look at; None: all.

    Returns:
        None where it cannot be estimated: fewer than two cells or seeds, unequal numbers of seeds,
        or no variation at all.

    Raises:
        ValueError: `values` are not such arrays, or `pool` is no mask of the cells.
    """
    cells = checked_cells(values)
    mask = checked_mask(pool, len(cells))
    means = [cell.mean(axis=1) for cell, kept in zip(cells, mask, strict=True) if kept]
    if len(means) < 2 or len({len(mean) for mean in means}) > 1 or len(means[0]) < 2:
        return None
    inside = seed_spread(means, blocked=True)
    whole = seed_spread(means, blocked=False)
    assert inside is not None and whole is not None
    return 1.0 - inside.variance / whole.variance if whole.variance > 0 else None


def checked_mask(pool: ArrayLike | None, cells: int) -> Mask:
    """Return a mask (C,) of booleans; None is all.

    Raises:
        ValueError: `pool` is no mask of that many cells.
    """
    if pool is None:
        return np.ones(cells, dtype=np.bool_)
    mask = np.asarray(pool)
    if mask.shape != (cells,) or mask.dtype != np.bool_:
        raise ValueError(f"pool is no mask: give {cells} booleans, one for each cell")
    return mask


def _interaction_squares(table: Array) -> float:
    """Return Σ(x_ab − x̄_a − x̄_b + x̄)² of a table."""
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((rest**2).sum())
