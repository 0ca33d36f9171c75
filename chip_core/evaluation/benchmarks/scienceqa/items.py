"""ScienceQA (test): multiple choice, about half with a picture.

Folder: `problems.json` and `pid_splits.json` (or in `data/scienceqa/`), and the pictures in
`images/test/ID/`, as published. Questions are written as LLaVA's evaluation writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation.benchmarks.base import FileBenchmark, Pictures
from chip_core.evaluation.benchmarks.scienceqa.score import LETTERS, ScienceQaScorer, _load_problems
from chip_core.evaluation.scorer import ProtocolName, Resources
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class ScienceQa(FileBenchmark):
    """ScienceQA's test questions."""

    max_new_tokens = 64

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the split's order."""
        folder = self._folder(data)
        roots = [folder / "images" / "test", folder / "data" / "scienceqa" / "images" / "test"]
        pictures = Pictures([*roots, folder / "test"])
        return [
            Item(
                id=item,
                prompt=_format_prompt(problem),
                pictures=(pictures.file(f"{item}/{problem['image']}"),) if problem["image"] else (),
            )
            for item, problem in _load_problems(folder, Resources()).items()
        ]


def _format_prompt(problem: Mapping[str, Any]) -> str:
    choices = " ".join(
        f"({letter}) {text}" for letter, text in zip(LETTERS, problem["choices"], strict=False)
    )
    return (
        f"Context: {problem['hint'] or 'N/A'}\nQuestion: {problem['question']}\n"
        f"Options: {choices}\nAnswer with the option's letter from the given choices directly."
    )


BENCHMARKS.register("scienceqa")(ScienceQa(ScienceQaScorer()))
