"""AMBER's questions: descriptions and yes/no questions.

The folder also has `query_all.json` (or in `query/` or `data/`), and 1,004 pictures in `image/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation.benchmarks.amber.score import AmberScorer
from chip_core.evaluation.benchmarks.base import YES_OR_NO, Pictures
from chip_core.evaluation.benchmarks.published import AMBER_QUERIES, amber_names
from chip_core.evaluation.reading import iter_unique_rows
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class Amber(AmberScorer):
    """AMBER."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the order of the query file."""
        folder = self.require_folder(data)
        rows = self.read_rows(data, *AMBER_QUERIES, "data/query_all.json")
        described_ids = {
            row.id("id")
            for row in self.read_rows(data, *amber_names("annotations.json"))
            if row.text("type") == "generative"
        }
        pictures = Pictures([folder / "image", folder / "images", folder / "data" / "image"])
        items = []
        for item, row in iter_unique_rows(rows, lambda row: row.id("id")):
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


BENCHMARKS.register("amber")(Amber())
