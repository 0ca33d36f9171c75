"""Simulate how often the interval of a judge's mean, corrected by labels, covers the truth.

    python -m benchmarks.prediction_powered_simulation --repeats 2000 --rates 0.1 0.15 0.3 0.5
    python -m benchmarks.prediction_powered_simulation --json

The world: for each answer to N items, a judge says whether it is right, and is itself right with
probability `accuracy`; people label n of the items. Two kinds of figure: the rate of one arm, and
the difference of two arms on the same items, whose labels and verdicts are −1, 0 or 1 (half of the
items are alike for both). With three answers an item, as of three training seeds, people label one
of them, and the judge reads all. Reported: the share of 95 % intervals that cover the true figure,
with its Monte-Carlo standard error, for the corrected figure, the judge's own and the labels alone;
the mean width of the three; and the error of the judge's own figure.
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

from benchmarks.machine import describe_machine
from orchestrator.analysis.prediction_powered import MeanEstimate, prediction_powered_mean

ACCURACIES = (0.70, 0.85, 0.95)
RATES = (0.30,)
#: items, labels and answers of an item
SIZES = (
    (200, 30, 1), (200, 60, 1), (1000, 30, 1), (1000, 60, 1), (1000, 100, 1), (1000, 100, 3)
)  # fmt: skip
DIFFERENCE = 0.05  # of the second arm's rate over the first's
ALIKE = 0.5  # share of items whose two answers certainly have the same label


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A world to draw benchmarks from."""

    kind: str  # "rate" or "difference"
    accuracy: float
    items: int
    labels: int
    answers: int  # of an item and arm
    rate: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200, help="benchmarks drawn in each setting")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=list(RATES), help="of what people call right"
    )
    parser.add_argument("--accuracies", type=float, nargs="+", default=list(ACCURACIES))
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if given.repeats < 1 or not all(0 < rate < 1 - DIFFERENCE for rate in given.rates):
        parser.error(f"at least one repeat, and rates between 0 and {1 - DIFFERENCE}")
    found = [
        simulate(
            Setting(
                kind=kind,
                accuracy=accuracy,
                items=items,
                labels=labels,
                answers=answers,
                rate=rate,
            ),
            given.repeats,
            given.seed,
        )
        for kind in ("rate", "difference")
        for rate in given.rates
        for items, labels, answers in SIZES
        for accuracy in given.accuracies
    ]
    if given.json:
        report = {"benchmark": "prediction_powered_simulation", "machine": describe_machine()}
        print(
            json.dumps(report | {"repeats": given.repeats, "seed": given.seed, "settings": found})
        )
        return
    print(f"{given.repeats} benchmarks a setting; percent and points; coverage ± Monte-Carlo error")
    for row in found:
        print(
            f"{row['kind']:10}  {100 * row['rate']:2.0f} %  N {row['items']:4}  "
            f"n {row['labels']:3}  answers {row['answers']}  "
            f"judge {100 * row['accuracy']:.0f} %: coverage {row['coverage']:.1f} ± "
            f"{row['error']:.1f} (judge {row['raw_coverage']:.1f}, labels "
            f"{row['labels_coverage']:.1f})  width {row['width']:.1f} "
            f"(judge {row['raw_width']:.1f}, labels {row['labels_width']:.1f})  "
            f"judge off by {row['raw_bias']:+.1f}"
        )


def simulate(setting: Setting, repeats: int, seed: int) -> dict[str, Any]:
    """Return a setting's shares and means, in percent and points."""
    # Each setting draws its own benchmarks, so that their errors are independent.
    own = [setting.items, setting.labels, setting.answers]
    own += [round(1000 * share) for share in (setting.accuracy, setting.rate)]
    random = np.random.default_rng([seed, *own, setting.kind == "rate"])
    truth = setting.rate if setting.kind == "rate" else DIFFERENCE
    drawn = [_draw_benchmark(setting, random) for _ in range(repeats)]
    covers = {part: np.mean([_covers(one[part], truth) for one in drawn]) for part in drawn[0]}
    widths = {part: 100 * np.mean([_get_width(one[part]) for one in drawn]) for part in drawn[0]}
    share = float(covers["corrected"])
    return {
        **asdict(setting),
        "coverage": 100 * share,
        "error": 100 * math.sqrt(share * (1 - share) / repeats),
        "raw_coverage": 100 * float(covers["raw"]),
        "labels_coverage": 100 * float(covers["labels_only"]),
        "width": float(widths["corrected"]),
        "raw_width": float(widths["raw"]),
        "labels_width": float(widths["labels_only"]),
        "bias": 100 * float(np.mean([one["corrected"].value for one in drawn]) - truth),
        "raw_bias": 100 * float(np.mean([one["raw"].value for one in drawn]) - truth),
    }


def _draw_benchmark(setting: Setting, random: np.random.Generator) -> dict[str, MeanEstimate]:
    """Draw a benchmark; its items are in random order, so the first n are a random subset."""
    shape = (setting.answers, setting.items)
    threshold = random.random(setting.items)  # one for all of an item's answers, half of the time
    first = _draw_uniforms(random, shape, threshold) < setting.rate
    if setting.kind == "rate":
        labels, judged = _judge(first, setting.accuracy, random)
    else:
        second = _draw_uniforms(random, shape, threshold) < setting.rate + DIFFERENCE
        pair = (_judge(second, setting.accuracy, random), _judge(first, setting.accuracy, random))
        labels, judged = pair[0][0] - pair[1][0], pair[0][1] - pair[1][1]
    shown = random.integers(setting.answers, size=setting.labels)
    places = np.arange(setting.labels)
    found = prediction_powered_mean(
        judged.mean(axis=0),
        places,
        labels[shown, places],
        judged[shown, places],
        paired=setting.kind == "difference",
    )
    return {
        "corrected": found.corrected,
        "raw": found.raw,
        "labels_only": found.labels_only,
    }


def _draw_uniforms(
    random: np.random.Generator, shape: tuple[int, int], threshold: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.where(random.random(shape) < ALIKE, threshold, random.random(shape))


def _judge(
    right: NDArray[np.bool_], accuracy: float, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the labels of people and the judge's verdicts, as numbers."""
    wrong = random.random(right.shape) > accuracy
    return right.astype(float), (right ^ wrong).astype(float)


def _covers(one: MeanEstimate, truth: float) -> bool:
    return one.interval is not None and one.interval[0] <= truth <= one.interval[1]


def _get_width(one: MeanEstimate) -> float:
    return 0.0 if one.interval is None else one.interval[1] - one.interval[0]


if __name__ == "__main__":
    main()
