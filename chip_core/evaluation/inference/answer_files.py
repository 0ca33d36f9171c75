"""Store answers on disk as they are generated, so that a killed evaluation resumes.

`answers/SIDE-BENCHMARK.MARK.WORKER.jsonl` in an attempt's folder has one line per answer. MARK is a
hash of all that decides answers besides the question, including the weights, and each line has a
hash of its question: an answer is reused only for the same question under the same mark.
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
#: Optional facts about an answer, which older builds did not record, and their types.
_MADE = {"tokens": int, "cut": bool, "prompt_tokens": int, "prompt_ids": str}


class AnswerFile:
    """The file of one worker's answers to one benchmark."""

    def __init__(self, folder: Path, name: str, fingerprint: str, worker: int) -> None:
        """Open the file; existing answers stay."""
        path = folder / FOLDER / f"{name}.{fingerprint[:16]}.{worker}.jsonl"
        cut_off = not _ends_whole(path)
        self._spool = JsonlWriter(path)
        if cut_off:
            self._spool.append({})  # ends the incomplete line

    def __enter__(self) -> AnswerFile:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Make all answers durable."""
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
    """Return the stored responses by item id, from all workers.

    Args:
        folders: of attempts; the first one with an answer counts.
        names: the prefixes of the benchmark's files.
        fingerprints: of what decides answers, as written by this build and older ones.
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
    """Return a hash of what decides answers besides the questions."""
    return hashlib.sha256(json.dumps(dict(decided_by), sort_keys=True).encode()).hexdigest()


def _asked(item: Item) -> str:
    """Return a hash of a question."""
    shown = [picture.key for picture in item.pictures]
    return hashlib.sha256(json.dumps([item.prompt, *shown]).encode()).hexdigest()[:16]


def _response(record: Mapping[str, Any]) -> Response:
    known = {name: record[name] for name, kind in _MADE.items() if type(record.get(name)) is kind}
    return Response(text=record["response"], **known)


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without damaged lines."""
    try:
        records = [line.record for line in read_lines(path)]
    except OSError:  # its questions are answered again
        return []
    return [record for record in records if record is not None and record.keys() >= _KEYS]


def _ends_whole(path: Path) -> bool:
    if not path.exists():
        return True
    with path.open("rb") as file:
        text = file.read()
    return not text or text.endswith(b"\n")
