"""Reading answers and benchmark files by row; what is wrong is a line that names the place."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.errors import UserError
from chip_core.evaluation.scorers import rows
from chip_core.evaluation.scorers.base import Answer
from chip_core.evaluation.scorers.rows import read_json as read_json


@dataclass(frozen=True, kw_only=True)
class Row:
    """One object of a file."""

    place: str  # "responses.json row 7"
    values: Mapping[str, Any]

    def id(self, *keys: str) -> str:
        """Return the first of the keys that is there, an id, as text.

        Raises:
            UserError: none of them is there, or what is there is neither text nor a number.
        """
        value = self._first(keys)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(
                f"{self.place}: {keys[0]} must be text or a number, got {_brief(value)}"
            )
        return str(value)

    def text(self, *keys: str) -> str:
        """Return the first of the keys that is there, a text.

        Raises:
            UserError: none of them is there, or what is there is no text.
        """
        value = self._first(keys)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {keys[0]} must be text, got {_brief(value)}")
        return value

    def has(self, *keys: str) -> bool:
        """Whether one of the keys is there."""
        return any(key in self.values for key in keys)

    def _first(self, keys: Sequence[str]) -> Any:
        for key in keys:
            if key in self.values:
                return self.values[key]
        raise UserError(f"{self.place}: there is no {' or '.join(keys)}")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file: a JSON list of objects, or one JSON object a line.

    Raises:
        UserError: it cannot be read so.
    """
    return [
        Row(place=f"{path} row {number}", values=values)
        for number, values in enumerate(rows.read_rows(path), start=1)
    ]


def by_item(found: Sequence[Row], key: Callable[[Row], str]) -> Iterator[tuple[str, Row]]:
    """Yield a benchmark's rows by item.

    Raises:
        UserError: an item stands twice.
    """
    seen: set[str] = set()
    for row in found:
        item = key(row)
        if item in seen:
            raise UserError(f"{row.place}: '{item}' stands twice in the benchmark's file")
        seen.add(item)
        yield item, row


def find(data: Path, names: Sequence[str], benchmark: str) -> Path:
    """Return the first of `names` that a benchmark's folder holds.

    Raises:
        UserError: it holds none of them.
    """
    for name in names:
        if (data / name).is_file():
            return data / name
    raise UserError(
        f"{benchmark}: {data} holds no {' and no '.join(names)} "
        "(`chip-ablate data status` says what goes there and where it is published)"
    )


def answered(
    answers: Sequence[Answer], known: Collection[str], benchmark: str
) -> dict[str, Answer]:
    """Return answers by item, under `corrected`: each item once, and all of this benchmark.

    Raises:
        UserError: there is none; one is of no item of the benchmark, or an item has two.
    """
    need_answers(answers, benchmark)
    for answer in answers:
        if answer.item not in known:
            raise UserError(
                f"{benchmark}: '{answer.item}' is the id of no question of the benchmark"
            )
    rows.refuse_repeats(answers, benchmark)
    return {answer.item: answer for answer in answers}


def need_answers(answers: Sequence[Answer], benchmark: str) -> None:
    """Refuse an empty list."""
    if not answers:
        raise UserError(f"{benchmark}: there are no answers to score")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
