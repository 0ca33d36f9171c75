"""MMHal-Bench's questions, one to a picture.

The pictures are in `images/` of the benchmark's folder, under the file names of their addresses; or
inside `mmhal-bench_with_image.jsonl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.base import Pictures, embedded_picture
from chip_core.evaluation.benchmarks.mmhal.score import MmhalScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side

WITH_PICTURES = "mmhal-bench_with_image.jsonl"


class Mmhal(MmhalScorer):
    """MMHal-Bench."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the template's order."""
        folder = self.require_folder(data)
        embedded = {}
        if (folder / WITH_PICTURES).is_file():
            embedded = {
                row.id("image_id"): embedded_picture(row.id("image_id"), partial(row.text, "image"))
                for row in reading.read_rows(folder / WITH_PICTURES)
            }
        pictures = Pictures([folder / "images", folder])
        items = []
        for item, row in self._iter_questions(folder):
            picture = embedded.get(item)
            if picture is None:
                file = Path(urlsplit(row.text("image_src")).path).name
                picture = pictures.file(file, f"{item}.jpg", f"{item}.png")
            items.append(Item(id=item, prompt=row.text("question"), pictures=(picture,)))
        return items


BENCHMARKS.register("mmhal")(Mmhal())
