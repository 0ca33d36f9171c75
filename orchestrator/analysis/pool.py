"""Choose the cells that share a seed variance in a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.analysis.values import Mask, checked_cells

_LEAST_OTHERS = 2


def report_pool(
    values: Sequence[ArrayLike],
    weights: ArrayLike,
    *,
    collapsed: ArrayLike | None = None,
    point: float = 1.0,
) -> Mask:
    """Return the mask of the cells whose seed variance a contrast may share.

    A rate's variance goes with its mean, so cells far from the contrast's are left out: kept are
    those that have not collapsed and whose mean is between half and twice the mean of the
    contrast's cells, and the contrast's cells themselves. Where fewer than two others with at
    least two seeds are left, or the contrast's mean is below one point, all cells are kept.
    (docs/statistics.md, "The pool")

    Args:
        values: (S_c, N) of each of C cells.
        weights: (C,), of the contrast.
        collapsed: mask (C,) of cells whose training came apart; None: none did.
        point: one percentage point in the values' unit: 1 for percent, 0.01 for fractions.

    Raises:
        ValueError: the values are not such arrays, or a mask or the weights do not fit them.
    """
    cells = checked_cells(values)
    used = np.asarray(weights, dtype=np.float64) != 0
    broken = np.zeros(len(cells), dtype=bool) if collapsed is None else np.asarray(collapsed, bool)
    if used.shape != (len(cells),) or broken.shape != (len(cells),) or not used.any():
        raise ValueError(f"weights or collapsed do not fit {len(cells)} cells: give one for each")
    means = np.array([cell.mean() for cell in cells])
    seeded = np.array([len(cell) > 1 for cell in cells])
    middle = float(means[used].mean())
    near = (means >= middle / 2) & (means <= middle * 2) & ~broken
    others = near & ~used & seeded
    if middle < point or others.sum() < _LEAST_OTHERS:
        return np.ones(len(cells), dtype=np.bool_)
    kept: Mask = near | used
    return kept
