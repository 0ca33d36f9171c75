"""LLaVA-Bench in the Wild: 60 questions on 24 pictures, scored by a judge.

Folder: `questions.jsonl`, `context.jsonl`, `answers_gpt4.jsonl`, `rule.json`, and the pictures in
`images/`, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.base import FileBenchmark, Pictures
from chip_core.evaluation.benchmarks.llava_bench.score import LlavaBenchScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class LlavaBench(FileBenchmark):
    """LLaVA-Bench's questions."""

    max_new_tokens = 1024

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the file's order."""
        folder = self._folder(data)
        pictures = Pictures([folder / "images", folder])
        rows = reading.read_rows(reading.find_file(folder, ["questions.jsonl"], "llava_bench"))
        return [
            Item(
                id=row.id("question_id"),
                prompt=row.text("text"),
                pictures=(pictures.file(row.text("image")),),
            )
            for row in rows
        ]


BENCHMARKS.register("llava_bench")(LlavaBench(LlavaBenchScorer()))
