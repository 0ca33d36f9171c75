"""Rows of answers from files: JSON or JSON lines, whichever a file holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from chip_core.errors import UserError
from chip_core.evaluation.scorers.base import Answer


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        UserError: the file is not there or not JSON.
    """
    with _opened(path) as file:
        return _parsed(file.read(), str(path))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file: a JSON list of objects, or one JSON object a line.

    An empty file has no rows; a file that is one object is one row. Lines are read one at a time.

    Raises:
        UserError: it cannot be read so; one line that names the row.
    """
    with _opened(path) as file:
        found = list(_rows(path, file))
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: row {number} is {_kind(row)}, not an object with named values"
            )
    return found


def first_of(row: Mapping[str, Any], names: Sequence[str], path: Path, number: int) -> Any:
    """Return the first of some names that a row has.

    Raises:
        UserError: it has none of them.
    """
    for name in names:
        if name in row:
            return row[name]
    raise UserError(f"{path}: row {number} has no '{names[0]}'; it has: {', '.join(row) or '-'}")


def refuse_repeats(answers: Sequence[Answer], scorer: str) -> None:
    """Raise where an item is answered more than once: which answer counts is not for us to say.

    Raises:
        UserError: the item, and how often it is answered.
    """
    for item, times in Counter(answer.item for answer in answers).items():
        if times > 1:
            rows = [str(row) for row, answer in enumerate(answers, start=1) if answer.item == item]
            raise UserError(
                f"{scorer}: item {item} is answered {times} times (answers {', '.join(rows[:5])}): "
                "keep one, or use --protocol official, which counts each"
            )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a file is needed") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _rows(path: Path, file: TextIO) -> Iterator[Any]:
    first = True
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if first and not _is_whole(line):  # a list, or an object over many lines
            found = _parsed(line + file.read(), f"{path}: line {number}")
            yield from found if isinstance(found, list) else [found]
            return
        first = False
        yield _parsed(line, f"{path}: line {number}")


def _is_whole(line: str) -> bool:
    """Return whether a line is an object by itself: then every line is one."""
    if line.lstrip()[0] == "[":
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )
