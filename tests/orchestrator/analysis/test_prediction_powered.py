"""A judge's mean corrected by labels: by hand, against a slow reference, and its coverage."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies
from scipy.stats import t

from orchestrator.analysis import prediction_powered_mean

ROOT = Path(__file__).resolve().parents[3]


def reference_estimate(
    items: list[float],
    labelled: list[int],
    labels: list[float],
    judged: list[float],
    paired: bool,
) -> Any:
    """Compute λ, value and half width by the formulas of the module's head, sum by sum."""

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    def covariance(one: list[float], other: list[float]) -> float:
        a, b = mean(one), mean(other)
        together = [(x - a) * (y - b) for x, y in zip(one, other, strict=True)]
        return math.fsum(together) / (len(one) - 1)

    whole, n = len(items), len(labels)
    share = 1 - n / whole
    own = [items[place] for place in labelled]
    others = [value for place, value in enumerate(items) if place not in labelled]
    g = [f - n / whole * mine for f, mine in zip(judged, own, strict=True)]
    extra = max(0.0, covariance(g, g) - share**2 * covariance(own, own))
    spread = extra + share**2 * covariance(items, items)
    below = spread + n * (whole - n) / whole**2 * covariance(items, items)
    power = min(1.0, max(0.0, covariance(labels, g) / below))
    rest = [y - power * x for y, x in zip(labels, g, strict=True)]
    value = mean(labels) - power * (mean(judged) - mean(items))
    low, high = min(items + judged + labels), max(items + judged + labels)
    # what nobody gave, with what each weighs: one at each end, or a quarter there and half between
    pseudo = [(low, 0.25), ((low + high) / 2, 0.5), (high, 0.25)] if paired else (
        [(low, 1.0), (high, 1.0)]
    )  # fmt: skip
    weighed = [(left, 1.0) for left in rest]
    weighed += [(label - power * mean(g), weight) for label, weight in pseudo]
    counted = math.fsum(weight for _, weight in weighed)
    middle = math.fsum(weight * left for left, weight in weighed) / counted
    squares = math.fsum(weight * (left - middle) ** 2 for left, weight in weighed)
    first = squares / (counted - 2) / counted
    second = power**2 * (whole - n) / whole**2 * covariance(others, others)
    df = (first + second) ** 2 / (first**2 / (n - 2) + second**2 / (whole - n - 1))
    return power, value, t.ppf(0.975, df) * math.sqrt(first + second)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("answers", [1, 3])
def test_the_estimate_equals_the_slow_reference(answers: int, paired: bool) -> None:
    random = np.random.default_rng(answers)
    of_answers = random.integers(0, 7, size=(answers, 40)).astype(float)
    items = of_answers.mean(axis=0)
    labelled = random.permutation(40)[:15]
    judged = of_answers[0, labelled]
    labels = np.clip(judged + random.integers(-1, 3, size=15), 0, 6)
    found = prediction_powered_mean(items, labelled, labels, judged, paired=paired)
    given_ = (items.tolist(), labelled.tolist(), labels.tolist(), judged.tolist())
    power, value, half = reference_estimate(*given_, paired)
    assert 0.3 < power < 1
    assert found.power == pytest.approx(power, rel=1e-12)
    assert found.corrected.value == pytest.approx(value, rel=1e-12)
    assert found.corrected.interval == pytest.approx((value - half, value + half), rel=1e-12)
    assert found.raw.value == pytest.approx(items.mean()) and found.labels_only.value == (
        pytest.approx(labels.mean())
    )
    assert (found.labelled, found.items) == (15, 40)


def test_a_judge_of_yes_and_no_is_corrected_group_by_group() -> None:
    """With the slope of y on f as λ, the figure is that of post-stratification.

    Of 100 items the judge calls 40 wrong. 8 of 10 labelled of these are, and 1 of 10 of the others:
    0.4 · 0.8 + 0.6 · 0.1 = 0.38. λ is the labelled's covariance, (8/20 − 9/20 · 10/20) · 20/19,
    over the variance of all, 0.24 · 100/99, in place of that of the labelled.
    """
    items = np.repeat([1.0, 0.0], [40, 60])
    labelled = np.r_[0:10, 40:50]
    labels = np.r_[np.ones(8), np.zeros(2), 1, np.zeros(9)]
    found = prediction_powered_mean(items, labelled, labels)
    assert found.power == pytest.approx(0.184210526 / 0.242424242)
    assert found.corrected.value == pytest.approx(0.45 - found.power * 0.1)
    assert found.corrected.value == pytest.approx(0.38, abs=0.01)
    assert found.raw.value == 0.4


def test_a_perfect_judge_saves_labels_and_a_blind_one_costs_nothing() -> None:
    random = np.random.default_rng(0)
    truth = (random.random(1000) < 0.3).astype(float)
    some = np.arange(60)

    def width(judge: Any) -> float:
        interval = prediction_powered_mean(judge, some, truth[some]).corrected.interval
        assert interval is not None
        return interval[1] - interval[0]

    blind = width((random.random(1000) < 0.3).astype(float))
    alone = prediction_powered_mean(np.ones(1000), some, truth[some])
    assert alone.power == 0 and alone.corrected.value == alone.labels_only.value
    assert alone.labels_only.interval is not None and alone.corrected.interval is not None
    labels = alone.labels_only.interval[1] - alone.labels_only.interval[0]
    assert width(truth) < 0.6 * labels
    assert blind < 1.05 * labels
    assert width(1 - truth) == pytest.approx(width(np.ones(1000)))  # λ is not below 0


def test_all_labelled_is_the_labels() -> None:
    labels = np.array([1.0, 0, 1, 1, 0])
    found = prediction_powered_mean(1 - labels, np.arange(5), labels)
    assert (found.power, found.corrected.value) == (0, 0.6)


def test_no_interval_where_nothing_varies_or_hardly_anything_is_labelled() -> None:
    items = np.r_[np.zeros(5), np.ones(5)]
    assert prediction_powered_mean(items, [0, 9], [0, 1]).corrected.interval is None
    alike = prediction_powered_mean(items, [0, 1, 9], [1, 1, 1])
    assert alike.corrected.interval is None and alike.corrected.value == 1


@given(
    strategies.floats(-5, 5),
    strategies.floats(0.1, 10),
    strategies.permutations(list(range(12))),
)
def test_units_and_order_do_not_matter(shift: float, scale: float, order: list[int]) -> None:
    items = np.array([0.0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1])
    labelled, labels = np.arange(6), np.array([0.0, 1, 1, 1, 1, 0])
    plain = prediction_powered_mean(items, labelled, labels)
    place = np.empty(12, dtype=int)
    place[order] = np.arange(12)
    moved = prediction_powered_mean(
        shift + scale * items[order], place[labelled], shift + scale * labels
    )
    assert moved.corrected.value == pytest.approx(shift + scale * plain.corrected.value)
    assert plain.corrected.interval is not None and moved.corrected.interval is not None
    assert moved.corrected.interval == pytest.approx(
        [shift + scale * bound for bound in plain.corrected.interval]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], [0], [1]), "items"),
        (([1, 2], [0, 0], [1, 1]), "twice"),
        (([1, 2], [2], [1]), "does not exist"),
        (([1, 2], [0.5], [1]), "not a list of indices"),
        (([1, 2], [0], [1, 1]), "1 labelled items, 2 labels"),
        (([1, 2], [0], [math.nan]), "labels is not a list"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prediction_powered_mean(*map(np.asarray, arguments))


def test_the_simulation_covers_and_is_seeded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    script = importlib.import_module("benchmarks.prediction_powered_simulation")
    monkeypatch.setattr(script, "SIZES", ((200, 60, 1),))

    def run() -> list[dict[str, Any]]:
        script.main(["--repeats", "300", "--accuracies", "0.85", "--json"])
        return json.loads(capsys.readouterr().out)["settings"]

    found = run()
    assert found == run()
    for row in found:
        # 95 % nominal; 300 benchmarks leave a standard error of 1.3 points
        assert abs(row["coverage"] - 95) < 2 + 3 * 1.3
        assert row["width"] < row["labels_width"]
        assert abs(row["bias"]) < 1
    rate, difference = found
    assert rate["raw_bias"] == pytest.approx(6, abs=0.5)  # (1 − 2 · 0.3) · 0.15
    assert difference["raw_bias"] == pytest.approx(-1.5, abs=0.5)  # 5 · (2 · 0.85 − 1) − 5


def test_few_rare_labels_are_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 % of 60 labels are 6, and a judge that is right on 95 % errs 3 times."""
    monkeypatch.syspath_prepend(str(ROOT))
    script = importlib.import_module("benchmarks.prediction_powered_simulation")
    setting = script.Setting(kind="rate", accuracy=0.95, items=1000, labels=60, answers=1, rate=0.1)
    found = script.simulate(setting, 600, 0)
    assert 93 <= found["coverage"] <= 97
