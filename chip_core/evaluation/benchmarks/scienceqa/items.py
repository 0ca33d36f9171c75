"""ScienceQA's test questions; about half have a picture.

The pictures are in `images/test/ID/` of the benchmark's folder, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation.benchmarks.base import Pictures
from chip_core.evaluation.benchmarks.scienceqa.score import (
    LETTERS,
    Problem,
    ScienceQaScorer,
    load_problems,
)
from chip_core.evaluation.scorer import ProtocolName, Resources
from chip_core.evaluation.task import BENCHMARKS, Item, Side


class ScienceQa(ScienceQaScorer):
    """ScienceQA's test questions, written as LLaVA's evaluation writes them."""

    max_new_tokens = 64

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions in the split's order."""
        folder = self.require_folder(data)
        roots = [folder / "images" / "test", folder / "data" / "scienceqa" / "images" / "test"]
        pictures = Pictures([*roots, folder / "test"])
        return [
            Item(
                id=item,
                prompt=_format_prompt(problem),
                pictures=(pictures.file(f"{item}/{problem['image']}"),) if problem["image"] else (),
            )
            for item, problem in load_problems(folder, Resources()).items()
        ]


def _format_prompt(problem: Problem) -> str:
    choices = " ".join(
        f"({letter}) {text}" for letter, text in zip(LETTERS, problem["choices"], strict=False)
    )
    return (
        f"Context: {problem['hint'] or 'N/A'}\nQuestion: {problem['question']}\n"
        f"Options: {choices}\nAnswer with the option's letter from the given choices directly."
    )


BENCHMARKS.register("scienceqa")(ScienceQa())
