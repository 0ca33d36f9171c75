"""Compute how often people prefer the second arm to the first.

The item is the unit: several people's choices on it count as their mean, so that an item with many
judgements weighs no more than another. Notation: n items judged; w, t, l an item's shares of win,
tie and lose (w + t + l = 1); d = w − l its preference; S training seeds.

- Shares: the mean over items, with Wilson's score interval at n (E. B. Wilson, JASA 22, 1927,
  209–212). For an item with several judges w is a fraction; its variance is at most that of a
  0/1 value with the same mean, so the interval is then too wide rather than too narrow.
- Preference: the mean of d, with the t interval over items, which holds for these trained models.
  With two training seeds or more there is a second interval, for arms that could be trained again:
  each item was shown with one seed's answers, so items are nested in seeds, and
  docs/statistics.md's V = max(V_seed + V_item − V_res, V_item, V_seed) has V_res = V_item:
  V = max(V_seed, V_item), V_seed = var(seed means)/S, V_item = var(d)/n,
  df = max(1, V² / (V_seed²/(S − 1) + V_item²/(n − 1))). Only this one has a p. Both are clipped to
  −1 and 1, the bounds of a preference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy.stats import norm, t

from orchestrator.analysis.contrast import t_interval
from orchestrator.human_eval.agreement import Agreement, krippendorff_alpha
from orchestrator.human_eval.replies import Judgement

Interval = tuple[float, float]
#: The contribution of a verdict to win less lose.
VERDICT_VALUES = {"win": 1.0, "lose": -1.0, "tie": 0.0}


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of items and its 95 % interval, from 0 to 1."""

    value: float
    interval: Interval
    items: int


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Win less lose, from −1 to 1: above 0 the second arm is preferred."""

    value: float
    over_items: Interval | None  # None: one item, or all alike
    over_seeds: Interval | None  # None: one training seed, or all alike
    p: float | None
    by_seed: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class HumanFigures:
    """All figures of an import."""

    choices: int  # made, including "can't tell"
    items: int  # with a choice
    judged: Share | None  # could be judged, of the items with a choice
    win: Share | None
    tie: Share | None
    lose: Share | None
    preference: Preference | None
    agreement: Agreement  # of win, tie and lose; "can't tell" counts as missing
    chose_a: Share | None  # of the decided: 0.5 if the side does not matter


def compute_human_figures(choices: Sequence[Judgement]) -> HumanFigures:
    """Return the figures of people's choices; shares are None if there is nothing to count."""
    by_item: dict[str, list[Judgement]] = {}
    for choice in choices:
        by_item.setdefault(choice.item, []).append(choice)
    judged = {
        item: selected
        for item, item_choices in by_item.items()
        if (selected := [choice for choice in item_choices if choice.verdict != "cant_tell"])
    }
    decided = {
        item: selected
        for item, item_choices in judged.items()
        if (selected := [choice for choice in item_choices if choice.chose_a is not None])
    }

    def share_of(verdict: str) -> Share | None:
        return _estimate_share(judged.values(), lambda choice: choice.verdict == verdict)

    return HumanFigures(
        choices=len(choices),
        items=len(by_item),
        judged=_estimate_share(by_item.values(), lambda choice: choice.verdict != "cant_tell"),
        win=share_of("win"),
        tie=share_of("tie"),
        lose=share_of("lose"),
        preference=_estimate_preference(judged),
        agreement=krippendorff_alpha(
            [[choice.verdict for choice in item_choices] for item_choices in judged.values()]
        ),
        chose_a=_estimate_share(decided.values(), lambda choice: choice.chose_a is True),
    )


def wilson_interval(share: float, n: int, alpha: float = 0.05) -> Interval:
    """Return Wilson's score interval of a share of n."""
    z = float(norm.ppf(1 - alpha / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _estimate_share(
    items: Iterable[Sequence[Judgement]], counts: Callable[[Judgement], bool]
) -> Share | None:
    shares = [fmean(counts(choice) for choice in item_choices) for item_choices in items]
    if not shares:
        return None
    value = fmean(shares)
    return Share(value=value, interval=wilson_interval(value, len(shares)), items=len(shares))


def _estimate_preference(judged: Mapping[str, Sequence[Judgement]]) -> Preference | None:
    if not judged:
        return None
    by_seed: dict[int, list[float]] = {}
    for item_choices in judged.values():
        value = fmean(VERDICT_VALUES[choice.verdict] for choice in item_choices)
        by_seed.setdefault(item_choices[0].seed, []).append(value)
    values = [value for seed_values in by_seed.values() for value in seed_values]
    n, mean = len(values), fmean(values)
    means = {seed: fmean(seed_values) for seed, seed_values in sorted(by_seed.items())}
    v_item = variance(values) / n if n > 1 else 0.0
    over_items = _clipped_interval(mean, v_item, n - 1)
    over_seeds, p = None, None
    if len(means) > 1 and v_item > 0:
        v_seed = variance(means.values()) / len(means)
        v = max(v_seed, v_item)
        df = max(1.0, v**2 / (v_seed**2 / (len(means) - 1) + v_item**2 / (n - 1)))
        over_seeds = _clipped_interval(mean, v, df)
        p = 2 * float(t.sf(abs(mean) / math.sqrt(v), df))
    return Preference(value=mean, over_items=over_items, over_seeds=over_seeds, p=p, by_seed=means)


def _clipped_interval(mean: float, v: float, df: float) -> Interval | None:
    """Return the interval, clipped to the bounds of a preference."""
    interval = t_interval(mean, math.sqrt(v), df)
    return None if interval is None else (max(-1.0, interval[0]), min(1.0, interval[1]))
