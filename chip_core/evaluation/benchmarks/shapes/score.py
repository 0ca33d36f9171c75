"""The embedded world: captions of drawn scenes, scored against their exactly known contents.

An object is a shape noun; a mention of a shape that is not in the scene is hallucinated.

| metric    | goal     | numerator of an item                     | denominator of an item |
|-----------|----------|------------------------------------------|------------------------|
| `chair_i` | minimize | hallucinated mentions                    | mentions               |
| `chair_s` | minimize | 1 if any mention is hallucinated         | 1                      |
| `hal`     | minimize | 1 if any is, or a shape's colour is wrong| 1                      |
| `cover`   | maximize | shapes in the scene that are mentioned   | shapes in the scene    |

All are in percent. Mentions count with repeats. `hal` is stricter than `chair_s` as AMBER's Hal is
than CHAIR: a present shape under another colour counts too; a mention without a colour does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from chip_core.evaluation.aggregation import make_outcome
from chip_core.evaluation.benchmarks.base import ShippedBenchmark
from chip_core.evaluation.outcomes import MetricOutcome, percent
from chip_core.evaluation.reading import read_rows
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import Item, MetricInfo
from chip_core.shapes.world import (
    compare_caption,
    parse_scene_id,
)
from chip_core.utils.errors import UserError


class ShapesScorer(ShippedBenchmark):
    """Scores descriptions of the embedded world's scenes.

    All protocols have the same figures.
    """

    name = "shapes"
    version = "shapes-1"
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = {
        "chair_i": MetricInfo(unit="percent", goal="minimize"),
        "chair_s": MetricInfo(unit="percent", goal="minimize"),
        "hal": MetricInfo(unit="percent", goal="minimize"),
        "cover": MetricInfo(unit="percent", goal="maximize"),
    }

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of `item` (such as `test/17`) and `response`, as a trial writes them."""
        return [
            Answer(item=str(row.get("item")), response=str(row.get("response")))
            for row in read_rows(path)
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Score answers to any of the embedded world's splits."""
        self.require_protocol(protocol)
        try:
            metrics = score([(answer.item, answer.response) for answer in answers])
        except ValueError as error:
            raise UserError(f"shapes: {error}") from None
        answered_items = {answer.item for answer in answers}
        expected_items = resources.only or answered_items
        return ScoreResult(
            metrics=metrics, n=len(answers), missing=len(expected_items - answered_items)
        )

    def truth(self, item: Item) -> str:
        """Describe an item's scene."""
        return truth(item.id)


def score(answers: Sequence[tuple[str, str]]) -> tuple[MetricOutcome, ...]:
    """Score (item id such as `test/17`, response) pairs: chair_i, chair_s, hal, cover.

    If no answer names any object, chair_i is undefined.

    Raises:
        ValueError: no answers, or an unknown or repeated item.
    """
    if not answers:
        raise ValueError("there are no answers to score")
    repeated_items = [
        item for item, times in Counter(item for item, _ in answers).items() if times > 1
    ]
    if repeated_items:
        raise ValueError(f"item {repeated_items[0]!r} is answered more than once")

    chair_i, chair_s, hal, cover = [], [], [], []
    for item, response in answers:
        comparison = compare_caption(parse_scene_id(item), response)
        chair_i.append(make_outcome(item, comparison.invented, comparison.mentions))
        chair_s.append(make_outcome(item, comparison.invented > 0, 1))
        hal.append(make_outcome(item, comparison.invented + comparison.miscoloured > 0, 1))
        cover.append(make_outcome(item, comparison.covered, comparison.objects))
    return (
        percent("chair_i", "minimize", chair_i),
        percent("chair_s", "minimize", chair_s),
        percent("hal", "minimize", hal),
        percent("cover", "maximize", cover),
    )


def truth(item: str) -> str:
    """Describe an item's scene, in reading order: "a red moon, a blue star".

    Raises:
        ValueError: the id names no scene.
    """
    return ", ".join(f"a {shape.colour} {shape.shape}" for shape in parse_scene_id(item).things)
