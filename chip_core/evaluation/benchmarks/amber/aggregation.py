"""Compute AMBER's figures from item outcomes: as its script prints them, or without its constants.

Items are keyed by `GROUP/METRIC` for yes/no questions (`attribute/state/f1`) and by `METRIC` for
descriptions; a figure covers one group or several together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from chip_core.evaluation.outcomes import (
    ItemOutcome,
    MetricInfo,
    MetricOutcome,
    compute_percentage,
)

DESCRIPTIONS = ("chair", "cover", "hal", "cog")
RATES = ("accuracy", "precision", "recall", "f1")
ATTRIBUTES = ("attribute/state", "attribute/number", "attribute/action")

#: Prefix of a figure's name -> its groups.
PARTS: Mapping[str, tuple[str, ...]] = {
    "": ("existence", *ATTRIBUTES, "relation"),
    "existence/": ("existence",),
    "attribute/": ATTRIBUTES,
    "state/": ("attribute/state",),
    "number/": ("attribute/number",),
    "action/": ("attribute/action",),
    "relation/": ("relation",),
}

#: Evaluation type of the script -> the parts it prints; `g` alone prints descriptions only.
TYPES: Mapping[str, tuple[str, ...]] = {
    "a": tuple(PARTS),
    "d": tuple(PARTS),
    "g": (),
    "de": ("existence/",),
    "da": ("attribute/", "state/", "number/", "action/"),
    "dr": ("relation/",),
}

METRICS: Mapping[str, MetricInfo] = {
    **{
        name: MetricInfo(unit="percent", goal="maximize" if name == "cover" else "minimize")
        for name in DESCRIPTIONS
    },
    **{
        f"{part}{rate}": MetricInfo(unit="percent", goal="maximize")
        for part in PARTS
        for rate in RATES
    },
    "amber_score": MetricInfo(unit="points", goal="maximize"),
}

Items = Mapping[str, Sequence[ItemOutcome]]

#: The start value of every denominator in the script.
_SCRIPT_START = 0.001


def detect_evaluation_type(answered: Set[int], groups: Mapping[int, str]) -> str:
    """Return the script's evaluation type: that of the published query file that was answered.

    If the answers are not those of one of its parts, it is `a`, the type of all questions.

    Args:
        answered: the answered questions.
        groups: the group of every question.
    """
    dimensions: dict[str, set[int]] = defaultdict(set)
    for question, group in groups.items():
        dimensions[group.partition("/")[0]].add(question)
    parts = {
        "g": dimensions["generative"],
        "de": dimensions["existence"],
        "da": dimensions["attribute"],
        "dr": dimensions["relation"],
    }
    parts["d"] = parts["de"] | parts["da"] | parts["dr"]
    return next((part for part, ids in parts.items() if ids and ids == answered), "a")


def compute_official_metrics(items: Items, kind: str) -> tuple[MetricOutcome, ...]:
    """Return what the script prints under an evaluation type, rounded as it rounds.

    Parts without answers have its figures too (0, and 100 for Hal), without items.
    """
    values: dict[str, float | None] = {}
    if kind in ("a", "g"):
        for name in DESCRIPTIONS:
            values[name] = round(_rate_as_script([items.get(name, ())]), 1)
        values["hal"] = _hal_as_script(items.get("hal", ()))
    for part in TYPES[kind]:
        for rate in ("accuracy", "precision", "recall"):
            values[f"{part}{rate}"] = round(
                _rate_as_script(_group_separately(items, part, rate)), 1
            )
        values[f"{part}f1"] = _f1_as_script(
            values[f"{part}precision"] or 0.0,
            values[f"{part}recall"] or 0.0,
            0.001 if part == "existence/" else 0.0001,
        )
    if kind == "a":
        values["amber_score"] = round(_compute_amber_score(values) or 0.0, 2)
    return _make_metrics(values, items)


def compute_corrected_metrics(items: Items) -> tuple[MetricOutcome, ...]:
    """Return plain ratios of sums over the answers, unrounded; None if there are none."""
    answered = {outcomes[0].group for outcomes in items.values()}
    descriptions = "generative" in answered or not answered
    values: dict[str, float | None] = {}
    if descriptions:
        values.update({name: compute_percentage(items.get(name, ())) for name in DESCRIPTIONS})
    for part, groups in PARTS.items():
        if answered and not answered.intersection(groups):
            continue
        for rate in RATES:
            values[f"{part}{rate}"] = compute_percentage(_flatten(_part_items(items, part, rate)))
    if descriptions and "f1" in values:
        values["amber_score"] = _compute_amber_score(values)
    return _make_metrics(values, items)


def _make_metrics(values: Mapping[str, float | None], items: Items) -> tuple[MetricOutcome, ...]:
    return tuple(
        info.make_metric(name, values[name], _metric_items(items, name))
        for name, info in METRICS.items()
        if name in values
    )


def _metric_items(items: Items, name: str) -> Sequence[ItemOutcome]:
    if name in DESCRIPTIONS:
        return items.get(name, ())
    for part in PARTS:
        rate = name.removeprefix(part)
        if rate in RATES:
            return _flatten(_part_items(items, part, rate))
    return ()


def _part_items(items: Items, part: str, rate: str) -> list[Sequence[ItemOutcome]]:
    """Return a rate's items by group."""
    return [items.get(f"{group}/{rate}", ()) for group in PARTS[part]]


def _group_separately(items: Items, part: str, rate: str) -> list[Sequence[ItemOutcome]]:
    """Return what the script counts separately: attributes by kind, all others together."""
    groups = _part_items(items, part, rate)
    return groups if part == "attribute/" else [_flatten(groups)]


def _flatten(groups: Sequence[Sequence[ItemOutcome]]) -> list[ItemOutcome]:
    return [outcome for group in groups for outcome in group]


def _sum_as_script(items: Sequence[ItemOutcome]) -> tuple[float, float]:
    """Return numerator and denominator, summed in the script's order without compensation."""
    numerator, denominator = 0.0, _SCRIPT_START
    for outcome in items:
        numerator += outcome.numerator
        denominator += outcome.denominator
    return numerator, denominator


def _rate_as_script(groups: Sequence[Sequence[ItemOutcome]]) -> float:
    """Return a rate in percent over groups counted separately, each from the script's start."""
    sums = [_sum_as_script(items) for items in groups]
    numerator, denominator = sums[0]
    for further_numerator, further_denominator in sums[1:]:
        numerator += further_numerator
        denominator += further_denominator
    return numerator / denominator * 100


def _hal_as_script(items: Sequence[ItemOutcome]) -> float:
    hallucinated, described = _sum_as_script(items)
    clean = len(items) - hallucinated
    return round(100 - clean / described * 100, 1)


def _f1_as_script(precision: float, recall: float, constant: float) -> float:
    p, r = precision / 100, recall / 100
    return round(2 * p * r / (p + r + constant) * 100, 1)


def _compute_amber_score(values: Mapping[str, float | None]) -> float | None:
    chair, f1 = values["chair"], values["f1"]
    return None if chair is None or f1 is None else (100 - chair + f1) / 2
