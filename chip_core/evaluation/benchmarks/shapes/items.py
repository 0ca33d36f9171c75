"""The questions of the embedded world, about drawn scenes with known contents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation.benchmarks.shapes.score import METRICS, score, truth
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, Scored
from chip_core.evaluation.task import BENCHMARKS, Benchmark, Decoding, Item, Picture, Side
from chip_core.shapes.world import SPLIT_SIZES, draw_scene, get_question, make_scene

SPLITS: dict[Side, str] = {"select": "select", "report": "test"}


class ShapesBenchmark(Benchmark):
    """The embedded world as a benchmark: `select` is used to tune, `test` is reported."""

    version = "shapes-1"
    protocols: frozenset[ProtocolName] = frozenset({"official", "corrected"})  # they are the same
    metrics = METRICS
    splits = True

    def decoding(self, protocol: ProtocolName) -> Decoding:
        """Return how its questions are answered."""
        return Decoding(max_new_tokens=32)

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the split's images with their questions, drawn here."""
        split = SPLITS[side]
        return [
            Item(
                id=f"{split}/{index}",
                prompt=get_question(split, index),
                pictures=(
                    Picture(
                        key=f"{split}/{index}",
                        read=lambda index=index: draw_scene(make_scene(split, index)),  # type: ignore[misc]
                    ),
                ),
            )
            for index in range(SPLIT_SIZES[split])
        ]

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score the answers."""
        outcomes = score([(answer.item, answer.response) for answer in answers])
        return Scored(metrics=outcomes, n=len(answers), missing=0)

    def truth(self, item: Item) -> str:
        """Describe an item's scene."""
        return truth(item.id)


BENCHMARKS.register("shapes")(ShapesBenchmark())
