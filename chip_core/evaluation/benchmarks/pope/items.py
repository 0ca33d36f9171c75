"""POPE's questions: six about a picture in each of three splits.

The pictures are COCO's, in `val2014/` of the benchmark's folder or in a folder `coco/` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation.benchmarks.base import Pictures, coco_folders
from chip_core.evaluation.benchmarks.pope.score import SPLITS, PopeScorer
from chip_core.evaluation.benchmarks.published import pope_names
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class Pope(PopeScorer):
    """POPE's three splits."""

    max_new_tokens = 64

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions, split by split."""
        pictures = Pictures(coco_folders(self.require_folder(data)))
        return [
            Item(
                id=f"{split}/{row.id('question_id')}",
                prompt=row.text("text"),
                pictures=(pictures.file(row.text("image")),),
            )
            for split in SPLITS
            for row in self.read_rows(data, *pope_names(split))
        ]


BENCHMARKS.register("pope")(Pope())
