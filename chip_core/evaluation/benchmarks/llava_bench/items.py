"""LLaVA-Bench's questions: 60 on 24 pictures, in `images/` of the benchmark's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation.benchmarks.base import Pictures
from chip_core.evaluation.benchmarks.llava_bench.score import LlavaBenchScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class LlavaBench(LlavaBenchScorer):
    """LLaVA-Bench in the Wild."""

    max_new_tokens = 1024

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the file's order."""
        folder = self.require_folder(data)
        pictures = Pictures([folder / "images", folder])
        return [
            Item(
                id=row.id("question_id"),
                prompt=row.text("text"),
                pictures=(pictures.file(row.text("image")),),
            )
            for row in self.read_rows(data, "questions.jsonl")
        ]


BENCHMARKS.register("llava_bench")(LlavaBench())
