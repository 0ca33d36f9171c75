"""CHAIR: describe a COCO picture.

CHAIR publishes no questions: its folder has `questions.jsonl`, rows of `image_id`, with `question`
and `image` if they are not the usual ones. The pictures are COCO's, in `val2014/` there or in a
folder `coco/` beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.base import (
    FileBenchmark,
    Pictures,
    coco_folders,
    embedded_picture,
)
from chip_core.evaluation.benchmarks.chair.score import ChairScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Picture, Side

#: CHAIR's prompt if a row has none.
DESCRIBE = "Please describe this image in detail."


class Chair(FileBenchmark):
    """Pictures to describe."""

    questions: Sequence[str] = ("questions.jsonl",)

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the file's order."""
        folder = self._folder(data)
        pictures = Pictures(coco_folders(folder))
        rows = reading.read_rows(reading.find_file(folder, self.questions, self.name))
        return [
            Item(
                id=item,
                prompt=row.text("question") if row.has("question") else DESCRIBE,
                pictures=(_find_picture(row, item, pictures),),
            )
            for item, row in reading.iter_unique_rows(rows, lambda row: row.id("image_id"))
        ]


def _find_picture(row: reading.FileRow, item: str, pictures: Pictures) -> Picture:
    image = row.text("image") if row.has("image") else f"COCO_val2014_{int(item):012d}.jpg"
    if len(image) > 255 or "." not in image:  # not a file name: the picture itself
        return embedded_picture(item, lambda: image)
    train = image.replace("_val2014_", "_train2014_")
    return pictures.file(image, *([train] if train != image and not row.has("image") else []))


BENCHMARKS.register("chair")(Chair(ChairScorer()))
