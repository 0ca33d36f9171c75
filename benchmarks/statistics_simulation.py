"""Simulate how often the statistics are wrong: type-I error, coverage and power, with seeds.

    python benchmarks/statistics_simulation.py --repeats 2000
    python benchmarks/statistics_simulation.py --json

The world: four cells with the same seeds (a block), binary items shared by all. An item's outcome
is whether a sum of normal effects is above 0: of the item, of the item in that cell, of the seed,
of the seed in that cell, and noise. So a cell's true rate is exact (a probit), and so is the
difference that an interval should cover. Reported for the contrast of the second cell with the
first: the share of p < .05 without a difference (type-I error), the share of 95 % intervals that
cover the true difference, and the share of p < .05 with it (power). Each has its Monte-Carlo
standard error.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from orchestrator.analysis import Contrast, contrast

CELLS = 4
# Variances on the probit scale, except the seed's, which is set in percentage points.
ITEM, ITEM_IN_CELL, NOISE = 1.0, 0.2, 0.5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A world to draw studies from; rates in percent, differences and deviations in points."""

    seeds: int
    items: int = 500
    rate: float = 30.0
    difference: float = 3.0
    seed_sd: float = 1.5
    seed_correlation: float = 0.5
    guard_cell_factor: float = 1.0  # the second cell's seed deviation, over the others'


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the repeats and its Monte-Carlo standard error, both in percent."""

    percent: float
    error: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200, help="studies drawn in each setting")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5], help="training seeds")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--seed-sd", type=float, default=1.5, help="in percentage points")
    parser.add_argument(
        "--guard-cell-factor",
        type=float,
        default=1.0,
        help="how much more the second cell scatters between seeds than the others",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if given.repeats < 1 or min(given.seeds) < 2:
        parser.error("at least one repeat and two seeds")
    found = [
        simulate(
            Setting(
                seeds=seeds,
                items=given.items,
                seed_sd=given.seed_sd,
                guard_cell_factor=given.guard_cell_factor,
            ),
            given.repeats,
            given.seed,
        )
        for seeds in given.seeds
    ]
    if given.json:
        print(json.dumps({"repeats": given.repeats, "seed": given.seed, "settings": found}))
        return
    print(f"{given.repeats} studies a setting; percent ± Monte-Carlo standard error")
    for row in found:
        shown = "  ".join(
            f"{name} {row[name]['percent']:5.1f} ± {row[name]['error']:.1f}"
            for name in ("type_1_error", "coverage", "coverage_without_difference", "power")
        )
        print(f"seeds {row['seeds']}, items {row['items']}: {shown}")


def simulate(setting: Setting, repeats: int, seed: int) -> dict[str, Any]:
    """Return a setting's shares, as numbers that JSON holds."""
    rng = np.random.default_rng([seed, setting.seeds, setting.items])
    null = [_draw_contrast(setting, 0.0, rng) for _ in range(repeats)]
    moved = [_draw_contrast(setting, setting.difference, rng) for _ in range(repeats)]
    return {
        **asdict(setting),
        "type_1_error": asdict(_compute_share([_is_significant(one) for one in null])),
        "coverage": asdict(_compute_share([_covers(one, setting.difference) for one in moved])),
        "coverage_without_difference": asdict(_compute_share([_covers(one, 0.0) for one in null])),
        "power": asdict(_compute_share([_is_significant(one) for one in moved])),
        "guard": asdict(_compute_share([one.guard for one in null])),
    }


def _draw_contrast(setting: Setting, difference: float, rng: np.random.Generator) -> Contrast:
    """Draw a study and return the contrast of its second cell with its first, in points."""
    seeds, items = setting.seeds, setting.items
    rates = np.full(CELLS, setting.rate)
    rates[1] += difference
    # The density at the rate converts points of rate to probit units; the scale is that of all
    # effects together, of which the seed's is a small part.
    z = stats.norm.ppf(setting.rate / 100)
    other = ITEM + ITEM_IN_CELL + NOISE
    share = (setting.seed_sd / 100 / stats.norm.pdf(z)) ** 2  # of the whole variance, the seed's
    factor = np.ones(CELLS)
    factor[1] = setting.guard_cell_factor
    seed_variance = other * share / (1 - share) * factor**2
    whole = other + seed_variance
    threshold = -stats.norm.ppf(rates / 100) * np.sqrt(whole)

    common, own = math.sqrt(setting.seed_correlation), math.sqrt(1 - setting.seed_correlation)
    seed_effect = np.sqrt(seed_variance)[:, None] * (
        common * rng.standard_normal(seeds) + own * rng.standard_normal((CELLS, seeds))
    )
    item_effect = math.sqrt(ITEM) * rng.standard_normal(items) + math.sqrt(
        ITEM_IN_CELL
    ) * rng.standard_normal((CELLS, items))
    noise = math.sqrt(NOISE) * rng.standard_normal((CELLS, seeds, items))
    latent = seed_effect[:, :, None] + item_effect[:, None, :] + noise
    outcomes: NDArray[np.float64] = np.where(latent > threshold[:, None, None], 100.0, 0.0)
    return contrast(list(outcomes), [-1, 1, 0, 0], blocked=True)


def _is_significant(one: Contrast) -> bool:
    return one.p is not None and one.p < 0.05


def _covers(one: Contrast, truth: float) -> bool:
    if one.interval is None:
        return False
    low, high = one.interval
    return low <= truth <= high


def _compute_share(hits: Sequence[bool]) -> Share:
    share = sum(hits) / len(hits)
    error = math.sqrt(share * (1 - share) / len(hits))
    return Share(percent=100 * share, error=100 * error)


if __name__ == "__main__":
    main()
