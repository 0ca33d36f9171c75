"""MMMU's validation questions: most have one picture, some up to seven.

They are in the data set's `SUBJECT/validation-*.parquet` with the pictures, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from chip_core.evaluation.benchmarks.base import embedded_picture
from chip_core.evaluation.benchmarks.mmmu.score import CHOICE, MmmuScorer, parse_options
from chip_core.evaluation.scorer import ProtocolName
from chip_core.evaluation.task import BENCHMARKS, Item, Picture, Side
from chip_core.utils.errors import UserError

PICTURES = tuple(f"image_{number}" for number in range(1, 8))
TEXTS = ("id", "question", "options", "question_type")


class Mmmu(MmmuScorer):
    """MMMU's validation questions.

    The pictures come before the text, which names them <image 1> and so on.
    """

    max_new_tokens = 128

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return the questions, subject by subject."""
        import pyarrow
        import pyarrow.parquet as parquet

        folder = self.require_folder(data)
        files = sorted(folder.glob("**/validation-*.parquet"))
        if not files:
            raise UserError(f"mmmu: {folder} holds no SUBJECT/validation-*.parquet")
        items = []
        for file in files:
            try:
                paths = [f"{name}.path" for name in PICTURES]
                rows = parquet.ParquetFile(file).read(columns=[*TEXTS, *paths]).to_pylist()
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"mmmu: {file} cannot be read ({error})") from None
            items += [_make_item(file, number, row) for number, row in enumerate(rows)]
        return items


def _make_item(file: Path, number: int, row: dict[str, Any]) -> Item:
    missing = [name for name in TEXTS if not isinstance(row.get(name), str)]
    if missing:
        raise UserError(f"mmmu: {file} row {number}: {missing[0]} must be text")
    picture_columns = [name for name in PICTURES if row.get(name) is not None]
    pictures = [
        _make_picture(file, number, name, f"{row['id']}/{name}") for name in picture_columns
    ]
    is_multiple_choice = row["question_type"] == CHOICE
    options = parse_options(row["options"]) if is_multiple_choice else []
    return Item(
        id=row["id"],
        prompt=_format_prompt(row["question"], options),
        pictures=tuple(pictures),
        fields={"options": options} if is_multiple_choice else {},
    )


def _format_prompt(question: str, options: Sequence[str]) -> str:
    """Format a question as the official configuration for LLaVA-1.5 does."""
    if not options:
        return f"{question}\n\nAnswer the question using a single word or phrase."
    lines = "".join(f"({chr(ord('A') + n)}) {text}\n" for n, text in enumerate(options))
    return (
        f"{question}\n\n{lines}\nAnswer with the option's letter from the given choices directly."
    )


def _make_picture(file: Path, number: int, column: str, key: str) -> Picture:
    return embedded_picture(key, lambda: _read_column(file, column)[number]["bytes"])


@lru_cache(maxsize=8)
def _read_column(file: Path, column: str) -> list[Any]:
    import pyarrow.parquet as parquet

    rows: list[Any] = parquet.read_table(file, columns=[column])[column].to_pylist()
    return rows


BENCHMARKS.register("mmmu")(Mmmu())
