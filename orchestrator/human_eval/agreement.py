"""Compute Krippendorff's α for nominal values, with any judgement missing.

Source: K. Krippendorff, Content Analysis (4th ed., 2019), chapter 12. With the coincidences
o_ck = Σ over units of (ordered pairs of values c and k within the unit) / (m_u − 1), where m_u
judgements were made of unit u, n_c = Σ_k o_ck and n = Σ_c n_c:

    α = 1 − D_o / D_e = 1 − (n − 1) · Σ_{c≠k} o_ck / Σ_{c≠k} n_c·n_k

Units with fewer than two judgements carry no information on agreement and are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of people beyond chance."""

    alpha: float | None  # 1 is agreement, 0 is chance; None if it is undefined
    interval: tuple[float, float] | None  # 95 %, by a bootstrap over units
    units: int  # with two judgements or more


def krippendorff_alpha(units: Iterable[Sequence[Hashable]], *, seed: int = 0) -> Agreement:
    """Return α of units, each given as its values, whoever gave them.

    α is undefined if no unit has two values, or if only one value was ever used.
    """
    counts = [Counter(values) for values in units if len(values) >= 2]
    categories = sorted({value for count in counts for value in count}, key=str)
    table = np.array([[float(count[category]) for category in categories] for count in counts])
    if not counts:
        return Agreement(alpha=None, interval=None, units=0)
    alpha = _alpha(table)
    if alpha is None or len(counts) < 2:
        return Agreement(alpha=alpha, interval=None, units=len(counts))
    generator = np.random.default_rng(seed)
    bootstrap = [
        _alpha(table[generator.integers(len(table), size=len(table))])
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    defined = [value for value in bootstrap if value is not None]
    low, high = np.quantile(defined, [0.025, 0.975])
    return Agreement(alpha=alpha, interval=(float(low), float(high)), units=len(counts))


def _alpha(table: NDArray[np.float64]) -> float | None:
    """Return α of counts (units, values), each row with a sum of two or more."""
    sizes = table.sum(axis=1, keepdims=True)
    totals = table.sum(axis=0)  # n_c: a row's pairs over (m − 1) sum to its counts
    total = totals.sum()
    agreeing = (table * (table - 1) / (sizes - 1)).sum()
    expected = total**2 - (totals**2).sum()
    if expected == 0:
        return None
    return float(1 - (total - 1) * (total - agreeing) / expected)
