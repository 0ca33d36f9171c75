"""AMBER: descriptions and yes/no questions about 1,004 pictures.

Folder, as in the repository: `query_all.json` (or in `query/`), `annotations.json`,
`relation.json`, `safe_words.txt` (or all of these in `data/`), and the pictures in `image/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.amber.score import AmberScorer
from chip_core.evaluation.benchmarks.base import YES_OR_NO, FileBenchmark, Pictures
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side

QUERIES = "query_all.json"


class Amber(FileBenchmark):
    """AMBER's questions."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the order of the query file."""
        folder = self._folder(data)
        paths = [QUERIES, f"query/{QUERIES}", f"data/query/{QUERIES}", f"data/{QUERIES}"]
        rows = reading.read_rows(reading.find_file(folder, paths, "amber"))
        annotation_paths = ["annotations.json", "data/annotations.json"]
        described_ids = {
            row.id("id")
            for row in reading.read_rows(reading.find_file(folder, annotation_paths, "amber"))
            if row.text("type") == "generative"
        }
        pictures = Pictures([folder / "image", folder / "images", folder / "data" / "image"])
        items = []
        for item, row in reading.iter_unique_rows(rows, lambda row: row.id("id")):
            is_description = item in described_ids
            suffix = YES_OR_NO if protocol == "chip" and not is_description else ""
            items.append(
                Item(
                    id=item,
                    prompt=row.text("query") + suffix,
                    pictures=(pictures.file(row.text("image")),),
                    task="describe" if is_description else "yes or no",
                )
            )
        return items

    def needs_of(self, items: Sequence[Item]) -> frozenset[str]:
        """Yes/no questions alone need no language tools."""
        if any(item.task == "describe" for item in items):
            return self.needs
        return self.needs - {"similarity", "nltk"}


BENCHMARKS.register("amber")(Amber(AmberScorer()))
