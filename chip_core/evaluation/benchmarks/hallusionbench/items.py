"""HallusionBench's questions; the figures are in `hallusion_bench/` of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from chip_core.evaluation.benchmarks.base import YES_OR_NO, Pictures
from chip_core.evaluation.benchmarks.hallusionbench.score import (
    QUESTIONS,
    HallusionBenchScorer,
    make_item_id,
)
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class HallusionBench(HallusionBenchScorer):
    """HallusionBench."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the file's order; some have no figure."""
        folder = self.require_folder(data)
        pictures = Pictures([folder / "hallusion_bench", folder])
        suffix = YES_OR_NO if protocol == "chip" else ""
        items = []
        for row in self.read_rows(data, QUESTIONS):
            has_figure = row.values.get("filename") is not None
            names = [str(PurePosixPath(row.text("filename")))] if has_figure else []
            items.append(
                Item(
                    id=make_item_id(row),
                    prompt=row.text("question") + suffix,
                    pictures=tuple(map(pictures.file, names)),
                )
            )
        return items

    def group(self, item: Item) -> str:
        """Return an item's set: questions of a set share figures."""
        return item.id.rsplit("_", 2)[0]


BENCHMARKS.register("hallusionbench")(HallusionBench())
