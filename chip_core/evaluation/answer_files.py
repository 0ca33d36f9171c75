"""Answers as they are made, on disk: a killed evaluation goes on where it was.

`answers/SIDE-BENCHMARK.MARK.WORKER.jsonl` in an attempt's folder holds a line an answer. MARK is a
hash of all that decides the answers, the weights included: only answers under the same mark are
taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.evaluation.task import Item
from chip_core.files import Spool

FOLDER = "answers"


class AnswerFile:
    """Where one worker puts its answers to one benchmark."""

    def __init__(self, folder: Path, name: str, mark: str, worker: int) -> None:
        """Open it; answers that are in it stay."""
        path = folder / FOLDER / f"{name}.{mark[:16]}.{worker}.jsonl"
        cut_off = not _ends_whole(path)
        self._spool = Spool(path)
        if cut_off:
            self._spool.append({})  # ends the line

    def __enter__(self) -> AnswerFile:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Make all durable."""
        self._spool.close()

    def add(self, answers: Iterable[tuple[str, str]]) -> None:
        """Write (item id, response) pairs."""
        for item, response in answers:
            self._spool.append({"item": item, "response": response})


def made_before(folders: Sequence[Path], name: str, mark: str) -> dict[str, str]:
    """Return item id -> response of all workers' answers in attempts' folders."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / FOLDER).glob(f"{name}.{mark[:16]}.*.jsonl")):
            for record in _whole_records(path):
                found.setdefault(record["item"], record["response"])
    return found


def answers_mark(items: Sequence[Item], decided_by: Mapping[str, Any]) -> str:
    """Return a hash of the questions and of what else decides their answers."""
    digest = hashlib.sha256(json.dumps(dict(decided_by), sort_keys=True).encode())
    for item in items:
        digest.update(
            json.dumps([item.id, item.prompt, *(picture.key for picture in item.pictures)]).encode()
        )
    return digest.hexdigest()


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a line that a crash cut off is none."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "item" in record:
            records.append(record)
    return records


def _ends_whole(path: Path) -> bool:
    if not path.exists():
        return True
    with path.open("rb") as file:
        text = file.read()
    return not text or text.endswith(b"\n")
