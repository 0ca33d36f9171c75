"""Answers as they are made, on disk: a killed evaluation goes on where it was.

`answers/SIDE-BENCHMARK.MARK.WORKER.jsonl` in an attempt's folder holds a line an answer. MARK is a
hash of all that decides answers beside the question, the weights included, and each line has a hash
of its question: only the same question under the same mark is taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation.task import Item, Response
from chip_core.utils.files import JsonlWriter, read_lines

FOLDER = "answers"
_KEYS = {"item", "asked", "response"}
#: What is known of some answers beside: builds before did not note it. Of each, its type.
_MADE = {"tokens": int, "cut": bool, "prompt_tokens": int, "prompt_ids": str}


class AnswerFile:
    """Where one worker puts its answers to one benchmark."""

    def __init__(self, folder: Path, name: str, fingerprint: str, worker: int) -> None:
        """Open it; answers that are in it stay."""
        path = folder / FOLDER / f"{name}.{fingerprint[:16]}.{worker}.jsonl"
        cut_off = not _ends_whole(path)
        self._spool = JsonlWriter(path)
        if cut_off:
            self._spool.append({})  # ends the line

    def __enter__(self) -> AnswerFile:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Make all durable."""
        self._spool.close()

    def add(self, answers: Iterable[tuple[Item, Response]]) -> None:
        """Write answers."""
        for item, response in answers:
            made = {name: getattr(response, name) for name in _MADE}
            self._spool.append(
                {
                    "item": item.id,
                    "asked": _asked(item),
                    "response": response.text,
                    **{name: value for name, value in made.items() if value is not None},
                }
            )


def previous_answers(
    folders: Sequence[Path],
    names: Sequence[str],
    fingerprints: Sequence[str],
    items: Sequence[Item],
) -> dict[str, Response]:
    """Return item id -> response of those items that were answered, by whichever worker.

    Args:
        folders: of attempts, the one that counts first.
        names: what the benchmark's files begin with.
        fingerprints: of what decides answers, as this build and those before write it.
        items: the questions.
    """
    asked = {item.id: _asked(item) for item in items}
    found: dict[str, Response] = {}
    paths = (
        path
        for folder in folders
        for name in names
        for fingerprint in fingerprints
        for path in sorted((folder / FOLDER).glob(f"{name}.{fingerprint[:16]}.*.jsonl"))
    )
    for path in paths:
        for record in _whole_records(path):
            if asked.get(record["item"]) == record["asked"]:
                found.setdefault(record["item"], _response(record))
    return found


def answers_fingerprint(decided_by: Mapping[str, Any]) -> str:
    """Return a hash of what decides answers beside the questions."""
    return hashlib.sha256(json.dumps(dict(decided_by), sort_keys=True).encode()).hexdigest()


def _asked(item: Item) -> str:
    """Return a hash of a question."""
    shown = [picture.key for picture in item.pictures]
    return hashlib.sha256(json.dumps([item.prompt, *shown]).encode()).hexdigest()[:16]


def _response(record: Mapping[str, Any]) -> Response:
    known = {name: record[name] for name, kind in _MADE.items() if type(record.get(name)) is kind}
    return Response(text=record["response"], **known)


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a line that is not as it was written is none."""
    try:
        records = [line.record for line in read_lines(path)]
    except OSError:  # what it held is asked again
        return []
    return [record for record in records if record is not None and record.keys() >= _KEYS]


def _ends_whole(path: Path) -> bool:
    if not path.exists():
        return True
    with path.open("rb") as file:
        text = file.read()
    return not text or text.endswith(b"\n")
