"""Convert item outcomes to values whose mean is the metric.

S seeds, N units (items, or clusters of items that are not independent).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def pseudo_values(num: ArrayLike, den: ArrayLike | None = None) -> Array:
    """Return one value per unit, so that the mean of a row is the seed's metric.

    A mean metric's values are its scores. A ratio of sums R = Σnum/Σden is linearised about each
    seed's own ratio: y_i = R + (num_i − R·den_i)/mean(den). (docs/statistics.md, "Values")

    Args:
        num: (S, N), each unit's part of the numerator, or its score if `den` is None.
        den: (S, N), each unit's part of the denominator; single units may be 0.

    Returns:
        (S, N), in the unit of num/den.

    Raises:
        ValueError: not two-dimensional, empty, not of one shape or not finite; a denominator is
            negative, or a seed's denominators are all 0.
    """
    numerators = _to_table(num, "num")
    if den is None:
        return numerators.copy()
    denominators = _to_table(den, "den")
    if denominators.shape != numerators.shape:
        raise ValueError(f"den has shape {denominators.shape} and num {numerators.shape}")
    if (denominators < 0).any():
        raise ValueError("den is negative somewhere: a denominator counts, it cannot be below 0")
    totals = denominators.sum(axis=1, keepdims=True)
    if not totals.all():
        empty = np.flatnonzero(totals == 0).tolist()
        raise ValueError(f"den is 0 on every unit of row {empty}: the ratio there is undefined")
    ratio = numerators.sum(axis=1, keepdims=True) / totals
    values: Array = ratio + (numerators - ratio * denominators) / (totals / numerators.shape[1])
    return values


def validate_cells(values: Sequence[ArrayLike]) -> list[Array]:
    """Return the cells' values as (S_c, N) arrays with the same N.

    Raises:
        ValueError: there is no cell, or one is not such an array, empty or not finite.
    """
    if not len(values):
        raise ValueError("values is empty: give at least one cell")
    cells = [_to_table(cell, f"values[{index}]") for index, cell in enumerate(values)]
    units = sorted({cell.shape[1] for cell in cells})
    if len(units) > 1:
        raise ValueError(f"cells differ in their number of units: {units}: keep those all have")
    return cells


def _to_table(data: ArrayLike, name: str) -> Array:
    table = np.asarray(data, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"{name} has {table.ndim} dimensions: give (seeds, units)")
    if not table.size:
        raise ValueError(f"{name} is empty, of shape {table.shape}: give a seed and a unit")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} is not finite everywhere: leave out missing units in every cell")
    return table
