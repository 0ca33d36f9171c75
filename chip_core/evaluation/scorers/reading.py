"""Reading answers and benchmark files; what is wrong with one is a line that names the place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.errors import UserError
from chip_core.evaluation.scorers.base import Answer, ProtocolName, Scorer


@dataclass(frozen=True, kw_only=True)
class Row:
    """One object of a JSON-lines file or of a JSON list."""

    place: str  # "answers.jsonl line 3", "responses.json row 7"
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


def find(data: Path, names: Sequence[str], benchmark: str) -> Path:
    """Return the first of `names` that a benchmark's folder holds.

    Raises:
        UserError: it holds none of them.
    """
    for name in names:
        if (data / name).is_file():
            return data / name
    raise UserError(
        f"{benchmark}: {data} holds no {' and no '.join(names)}: "
        "name the folder with its files by --data (`chip-ablate data status` says where from)"
    )


def read_json(path: Path, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what a JSON file holds.

    Args:
        path: the file.
        pairs: what to make of an object's (key, value) pairs; None: a dict.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    return _parse(read_text(path), str(path), pairs)


def is_object(path: Path) -> bool:
    """Whether a file is one JSON object of ids, and not a list, a row, or one row a line."""
    text = read_text(path)
    if not text.lstrip().startswith("{"):
        return False
    try:
        return "id" not in json.loads(text)
    except (ValueError, RecursionError):
        return False


def read_rows(path: Path) -> list[Row]:
    """Return the objects of a JSON-lines file, or of a file that is one JSON list.

    Raises:
        UserError: it cannot be read, or is neither.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        listed = _parse(text, str(path), None)
        return [_row(value, f"{path} row {number}") for number, value in enumerate(listed, start=1)]
    # Split at \n alone: U+2028 and the like may stand inside a JSON string.
    return [
        _row(_parse(line, f"{path} line {number}", None), f"{path} line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def by_item(rows: Sequence[Row], key: Callable[[Row], str]) -> Iterator[tuple[str, Row]]:
    """Yield a benchmark's rows by item.

    Raises:
        UserError: an item stands twice.
    """
    seen: set[str] = set()
    for row in rows:
        item = key(row)
        if item in seen:
            raise UserError(f"{row.place}: '{item}' stands twice in the benchmark's file")
        seen.add(item)
        yield item, row


def check_protocol(scorer: Scorer, protocol: ProtocolName) -> None:
    """Refuse a protocol that a scorer does not know."""
    if protocol in scorer.protocols:
        return
    known = ", ".join(sorted(scorer.protocols))
    why = (
        "the paper says nothing of how its answers are read"
        if protocol == "chip"
        else "it has no such figures"
    )
    raise UserError(f"{scorer.name} has no protocol {protocol}: {why}; choices: {known}")


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
    refuse_repeated(answers, benchmark)
    return {answer.item: answer for answer in answers}


def refuse_repeated(answers: Sequence[Answer], benchmark: str) -> None:
    """Refuse an item that is answered twice."""
    times = Counter(answer.item for answer in answers)
    for item, often in times.items():
        if often > 1:
            raise UserError(f"{benchmark}: '{item}' is answered {often} times; it may be once")


def need_answers(answers: Sequence[Answer], benchmark: str) -> None:
    """Refuse an empty list."""
    if not answers:
        raise UserError(f"{benchmark}: there are no answers to score")


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def _parse(text: str, place: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        at = f" (line {error.lineno}, column {error.colno})" if "\n" in text else ""
        raise UserError(f"{place} is not JSON: {error.msg}{at}") from None
    except (ValueError, RecursionError):
        raise UserError(
            f"{place} is JSON that cannot be read: too deep, or a number too long"
        ) from None


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place} must be a JSON object, got {_brief(value)}")
    return Row(place=place, values=value)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
