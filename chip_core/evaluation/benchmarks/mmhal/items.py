"""MMHal-Bench: 96 questions that invite hallucination, scored by a judge.

Folder: `response_template.json` as published (or `mmhal-bench_answer_template.json`, as in RLHF-V),
and the pictures in `images/`, under the file names of their addresses; or
`mmhal-bench_with_image.jsonl` with the pictures inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.base import FileBenchmark, Pictures, embedded_picture
from chip_core.evaluation.benchmarks.mmhal.score import FILES, MmhalScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Picture, Side

WITH_PICTURES = "mmhal-bench_with_image.jsonl"


class Mmhal(FileBenchmark):
    """MMHal-Bench's questions."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the template's order."""
        folder = self._folder(data)
        rows = reading.read_rows(reading.find_file(folder, FILES, "mmhal"))
        embedded: dict[str, Picture] = {}
        if (folder / WITH_PICTURES).is_file():
            for row in reading.read_rows(folder / WITH_PICTURES):
                embedded[row.id("image_id")] = embedded_picture(
                    row.id("image_id"), partial(row.text, "image")
                )
        pictures = Pictures([folder / "images", folder])
        items = []
        for item, row in reading.iter_unique_rows(rows, lambda row: row.id("image_id")):
            file_name = embedded.get(item)
            if file_name is None:
                file = Path(urlsplit(row.text("image_src")).path).name
                file_name = pictures.file(file, f"{item}.jpg", f"{item}.png")
            items.append(Item(id=item, prompt=row.text("question"), pictures=(file_name,)))
        return items


BENCHMARKS.register("mmhal")(Mmhal(MmhalScorer()))
