"""HallusionBench: yes/no questions on figures, edited figures, and without a figure.

Folder: `HallusionBench.json`, and the figures in `hallusion_bench/`, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from chip_core.evaluation import reading
from chip_core.evaluation.benchmarks.base import YES_OR_NO, FileBenchmark, Pictures
from chip_core.evaluation.benchmarks.hallusionbench.score import KEY, HallusionBenchScorer
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class HallusionBench(FileBenchmark):
    """HallusionBench's questions."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the file's order; some have no figure."""
        folder = self._folder(data)
        path = reading.find_file(folder, ["HallusionBench.json"], "hallusionbench")
        pictures = Pictures([folder / "hallusion_bench", folder])
        suffix = YES_OR_NO if protocol == "chip" else ""
        items = []
        for row in reading.read_rows(path):
            filename = row.values.get("filename")
            names = () if filename is None else (str(PurePosixPath(row.text("filename"))),)
            items.append(
                Item(
                    id="_".join(row.id(key) for key in KEY),
                    prompt=row.text("question") + suffix,
                    pictures=tuple(pictures.file(name) for name in names),
                )
            )
        return items

    def group(self, item: Item) -> str:
        """Return an item's set: questions of a set share figures."""
        return item.id.rsplit("_", 2)[0]


BENCHMARKS.register("hallusionbench")(HallusionBench(HallusionBenchScorer()))
