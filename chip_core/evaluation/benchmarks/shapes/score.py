"""Score answers in the embedded world: CHAIR, Hal and Cover, against exactly known contents.

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

from chip_core.evaluation.outcomes import ItemOutcome, MetricOutcome, percent
from chip_core.evaluation.reading import get_first_value, read_objects
from chip_core.evaluation.scorer import (
    SCORERS,
    Answer,
    Need,
    ProtocolName,
    Resources,
    Scored,
    require_protocol,
)
from chip_core.evaluation.task import (
    MetricInfo,
)
from chip_core.shapes.world import compare_caption, parse_scene_id
from chip_core.utils.errors import UserError

METRICS: Mapping[str, MetricInfo] = {
    "chair_i": MetricInfo(unit="percent", goal="minimize"),
    "chair_s": MetricInfo(unit="percent", goal="minimize"),
    "hal": MetricInfo(unit="percent", goal="minimize"),
    "cover": MetricInfo(unit="percent", goal="maximize"),
}


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
        chair_i.append(_make_outcome(item, comparison.invented, comparison.mentions))
        chair_s.append(_make_outcome(item, comparison.invented > 0, 1))
        hal.append(_make_outcome(item, comparison.invented + comparison.miscoloured > 0, 1))
        cover.append(_make_outcome(item, comparison.covered, comparison.objects))
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


def _make_outcome(item: str, numerator: float, denominator: float) -> ItemOutcome:
    return ItemOutcome(item=item, numerator=float(numerator), denominator=float(denominator))


class EmbeddedScorer:
    """Scores answers to questions about drawn scenes; all protocols have its official figures."""

    name = "shapes"
    version = "shapes-1"
    needs: frozenset[Need] = frozenset()
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})
    metrics: Mapping[str, MetricInfo] = METRICS

    def read_responses(self, path: Path) -> list[Answer]:
        """Read rows of `item` (such as `test/17`) and `response`, as a trial writes them."""
        return [
            Answer(
                item=str(get_first_value(row, ("item",), path, number)),
                response=str(get_first_value(row, ("response",), path, number)),
            )
            for number, row in enumerate(read_objects(path), start=1)
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score answers to any of the embedded world's splits; `data` is not read."""
        require_protocol(self, protocol)
        try:
            metrics = score([(answer.item, answer.response) for answer in answers])
        except ValueError as error:
            raise UserError(f"shapes: {error}") from None
        expected_items = resources.only or {answer.item for answer in answers}
        return Scored(
            metrics=tuple(metrics),
            n=len(answers),
            missing=len(expected_items - {answer.item for answer in answers}),
        )


SCORERS.register("shapes")(EmbeddedScorer())
