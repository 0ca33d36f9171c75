"""The embedded world's questions, about scenes that are drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chip_core.evaluation.benchmarks.shapes.score import ShapesScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Decoding, Item, Picture, Side
from chip_core.shapes.world import (
    SPLIT_SIZES,
    draw_scene,
    get_question,
    make_scene,
)

SPLITS: Mapping[Side, str] = {"select": "select", "report": "test"}


class ShapesBenchmark(ShapesScorer):
    """The embedded world as a benchmark: `select` is used to tune, `test` is reported."""

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


BENCHMARKS.register("shapes")(ShapesBenchmark())
