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

from chip_core.evaluation.task import Item
from chip_core.utils.files import JsonlWriter, read_lines

FOLDER = "answers"
_KEYS = {"item", "asked", "response"}


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

    def add(self, answers: Iterable[tuple[Item, str]]) -> None:
        """Write answers."""
        for item, response in answers:
            self._spool.append({"item": item.id, "asked": _asked(item), "response": response})


def previous_answers(
    folders: Sequence[Path], name: str, fingerprint: str, items: Sequence[Item]
) -> dict[str, str]:
    """Return item id -> response of those items that were answered, by whichever worker."""
    asked = {item.id: _asked(item) for item in items}
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / FOLDER).glob(f"{name}.{fingerprint[:16]}.*.jsonl")):
            for record in _whole_records(path):
                if asked.get(record["item"]) == record["asked"]:
                    found.setdefault(record["item"], record["response"])
    return found


def answers_fingerprint(decided_by: Mapping[str, Any]) -> str:
    """Return a hash of what decides answers beside the questions."""
    return hashlib.sha256(json.dumps(dict(decided_by), sort_keys=True).encode()).hexdigest()


def _asked(item: Item) -> str:
    """Return a hash of a question."""
    shown = [picture.key for picture in item.pictures]
    return hashlib.sha256(json.dumps([item.prompt, *shown]).encode()).hexdigest()[:16]


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
