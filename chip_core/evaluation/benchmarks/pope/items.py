"""POPE: is this object in the picture? Six questions a picture, three splits.

Folder: `coco_pope_SPLIT.json` (or in `coco/` or `output/coco/`), as published. The pictures are
COCO's, in `val2014/` there or in a folder `coco/` beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.base import FileBenchmark, Pictures, coco_folders
from chip_core.evaluation.benchmarks.pope.score import SPLITS, PopeScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class Pope(FileBenchmark):
    """POPE's questions."""

    max_new_tokens = 64

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions, split by split."""
        folder = self._folder(data)
        pictures = Pictures(coco_folders(folder))
        items = []
        for split in SPLITS:
            file = f"coco_pope_{split}.json"
            path = reading.find_file(folder, [file, f"coco/{file}", f"output/coco/{file}"], "pope")
            items += [
                Item(
                    id=f"{split}/{row.id('question_id')}",
                    prompt=row.text("text"),
                    pictures=(pictures.file(row.text("image")),),
                )
                for row in reading.read_rows(path)
            ]
        return items


BENCHMARKS.register("pope")(Pope(PopeScorer()))
