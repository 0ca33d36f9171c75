"""Correct the p-values of several tests for their number.

m tests that have a p-value, of the P given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.analysis.values import Array


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, in the order given.

    Keeps the chance of any false finding at the level, whatever the tests' dependence.
    (docs/statistics.md, "Many comparisons")

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """

    def adjust(ascending: Array) -> Array:
        left = np.arange(len(ascending), 0, -1)  # tests not yet decided
        return np.maximum.accumulate(ascending * left)

    return _adjusted(p, adjust)


def benjamini_hochberg(p: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini and Hochberg's adjusted p-values, in the order given.

    Keeps the expected share of false ones among the findings at the level: for exploring.
    (docs/statistics.md, "Many comparisons")

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """
    from scipy.stats import false_discovery_control  # about a CPU second to import: not for `plan`

    return _adjusted(p, lambda ascending: np.asarray(false_discovery_control(ascending)))


def _adjusted(p: Sequence[float | None], adjust: Callable[[Array], Array]) -> list[float | None]:
    given = np.array([np.nan if value is None else value for value in p], dtype=np.float64)
    known = np.flatnonzero(~np.isnan(given))
    if ((given[known] < 0) | (given[known] > 1)).any():
        raise ValueError("a p-value is not between 0 and 1")
    order = known[np.argsort(given[known], kind="stable")]
    adjusted: list[float | None] = [None] * len(given)
    if not len(order):
        return adjusted
    for place, value in zip(order, np.minimum(adjust(given[order]), 1.0), strict=True):
        adjusted[place] = float(value)
    return adjusted
