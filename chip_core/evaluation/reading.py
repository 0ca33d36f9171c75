"""Read answers and benchmark files by row; each error is one line that names the place.

Files are JSON or JSON lines, detected from the content.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from chip_core.evaluation.scorer import Answer
from chip_core.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One object of a file: a row, or an object with a name."""

    location: str  # "responses.json row 7"
    values: Mapping[str, Any]

    def get(self, *keys: str) -> Any:
        """Return the value of the first of these keys that the row has.

        Raises:
            UserError: the row has none of them.
        """
        for key in keys:
            if key in self.values:
                return self.values[key]
        raise UserError(
            f"{self.location}: there is no {' or '.join(keys)}; it has: "
            f"{', '.join(self.values) or '-'}"
        )

    def id(self, *keys: str) -> str:
        """Return the first of these keys that the row has, an id, as text.

        Raises:
            UserError: the row has none of them, or the value is neither text nor a number.
        """
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(
                f"{self.location}: {keys[0]} must be text or a number, got {_shorten(value)}"
            )
        return str(value)

    def text(self, *keys: str) -> str:
        """Return the first of these keys that the row has, a text.

        Raises:
            UserError: the row has none of them, or the value is not text.
        """
        value = self.get(*keys)
        if not isinstance(value, str):
            raise UserError(f"{self.location}: {keys[0]} must be text, got {_shorten(value)}")
        return value

    def has(self, *keys: str) -> bool:
        """Whether the row has one of the keys."""
        return any(key in self.values for key in keys)


def read_rows(path: Path) -> list[FileRow]:
    """Return the rows of a file: a JSON list of objects, or one JSON object a line.

    Raises:
        UserError: the file cannot be read this way.
    """
    return [
        FileRow(location=f"{path} row {number}", values=values)
        for number, values in enumerate(read_objects(path), start=1)
    ]


def iter_unique_rows(
    rows: Sequence[FileRow], key: Callable[[FileRow], str]
) -> Iterator[tuple[str, FileRow]]:
    """Yield a benchmark's rows with their items.

    Raises:
        UserError: an item occurs twice.
    """
    seen: set[str] = set()
    for row in rows:
        item = key(row)
        if item in seen:
            raise UserError(f"{row.location}: '{item}' is twice in the benchmark's file")
        seen.add(item)
        yield item, row


def find_file(data: Path, names: Sequence[str], benchmark: str) -> Path:
    """Return the first of `names` that exists in a benchmark's folder.

    Raises:
        UserError: none of them does.
    """
    for name in names:
        if (data / name).is_file():
            return data / name
    raise UserError(
        f"{benchmark}: {data} holds no {' and no '.join(names)} (`chip-ablate data status` shows "
        "what belongs there and where it is published)"
    )


def answers_by_item(
    answers: Sequence[Answer], known_items: Collection[str], benchmark: str
) -> dict[str, Answer]:
    """Return answers by item, under `corrected`: each item at most once, and known.

    Raises:
        UserError: there is no answer, an item is not of this benchmark, or it has two answers.
    """
    require_answers(answers, benchmark)
    for answer in answers:
        if answer.item not in known_items:
            raise UserError(
                f"{benchmark}: '{answer.item}' is not the id of a question of the benchmark"
            )
    require_unique_answers(answers, benchmark)
    return {answer.item: answer for answer in answers}


def require_answers(answers: Sequence[Answer], benchmark: str) -> None:
    """Refuse an empty list."""
    if not answers:
        raise UserError(f"{benchmark}: there are no answers to score")


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file does not exist or is not JSON.
    """
    with _open_text(path) as file:
        return _parse_json(file.read(), str(path))


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file: a JSON list of objects, or one JSON object a line.

    An empty file has no rows; a file that is one object is one row. Lines are read one at a time.

    Raises:
        UserError: the file cannot be read this way; one line that names the row.
    """
    with _open_text(path) as file:
        values = list(_iter_values(path, file))
    for number, row in enumerate(values, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: row {number} is {_describe_type(row)}, not an object with named values"
            )
    return values


def read_answers(path: Path, items: Sequence[str], responses: Sequence[str]) -> list[Answer]:
    """Read rows of an item and a response, each by the first of its names that the row has.

    Values that an official script would fail on are kept in the answer's fields: an item under the
    first name that is not an integer, a response that is not text.
    """
    answers = []
    for row in read_rows(path):
        item, response = row.get(*items), row.get(*responses)
        fields: dict[str, Any] = {}
        if row.has(items[0]) and type(item) is not int:
            fields[items[0]] = item
        if not isinstance(response, str):
            fields["response"], response = response, ""
        answers.append(Answer(item=str(item), response=response, fields=fields))
    return answers


def require_text_responses(answers: Sequence[Answer], scorer: str) -> None:
    """Raise if a response is not text, under `official`.

    Raises:
        UserError: the number of the answer, and its item.
    """
    for number, answer in enumerate(answers, start=1):
        if "response" in answer.fields:
            raise UserError(
                f"{scorer}: answer {number} (item {answer.item}): the response is not text, at "
                "which the official script stops; --protocol corrected counts it as missing"
            )


def require_unique_answers(
    answers: Sequence[Answer],
    scorer: str,
    advice: str = "keep one, or use --protocol official, which counts each",
) -> None:
    """Raise if an item is answered more than once, since no answer is preferred over another.

    Raises:
        UserError: the item, and how often it is answered.
    """
    for item, times in Counter(answer.item for answer in answers).items():
        if times > 1:
            rows = [str(row) for row, answer in enumerate(answers, start=1) if answer.item == item]
            raise UserError(
                f"{scorer}: item {item} is answered {times} times (answers {', '.join(rows[:5])}): "
                f"{advice}"
            )


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
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


def _iter_values(path: Path, file: TextIO) -> Iterator[Any]:
    first = True
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if first and not _is_complete_object(line):  # a list, or an object over many lines
            parsed = _parse_json(line + file.read(), f"{path}: line {number}")
            yield from parsed if isinstance(parsed, list) else [parsed]
            return
        first = False
        yield _parse_json(line, f"{path}: line {number}")


def _is_complete_object(line: str) -> bool:
    """Return whether a line is a complete object: then every line is one."""
    if line.lstrip()[0] == "[":
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_json(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location}: not JSON ({error})") from None


def _describe_type(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )
