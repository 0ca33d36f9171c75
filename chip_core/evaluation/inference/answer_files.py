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

ANSWERS_FOLDER = "answers"
_REQUIRED_KEYS = {"item", "asked", "response"}
#: Optional facts about an answer, which older builds did not record, and their types.
_OPTIONAL_FIELDS = {"tokens": int, "cut": bool, "prompt_tokens": int, "prompt_ids": str}


class AnswerFile:
    """The file of one worker's answers to one benchmark."""

    def __init__(self, folder: Path, name: str, fingerprint: str, worker: int) -> None:
        """Open the file; existing answers stay."""
        path = folder / ANSWERS_FOLDER / f"{name}.{fingerprint[:16]}.{worker}.jsonl"
        is_truncated = not _ends_with_newline(path)
        self._writer = JsonlWriter(path)
        if is_truncated:
            self._writer.append({})  # ends the incomplete line

    def __enter__(self) -> AnswerFile:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Make all answers durable."""
        self._writer.close()

    def add(self, answers: Iterable[tuple[Item, Response]]) -> None:
        """Write answers."""
        for item, response in answers:
            optional = {name: getattr(response, name) for name in _OPTIONAL_FIELDS}
            self._writer.append(
                {
                    "item": item.id,
                    "asked": _hash_question(item),
                    "response": response.text,
                    **{name: value for name, value in optional.items() if value is not None},
                }
            )


def read_stored_answers(
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
    question_hashes = {item.id: _hash_question(item) for item in items}
    responses: dict[str, Response] = {}
    paths = (
        path
        for folder in folders
        for name in names
        for fingerprint in fingerprints
        for path in sorted((folder / ANSWERS_FOLDER).glob(f"{name}.{fingerprint[:16]}.*.jsonl"))
    )
    for path in paths:
        for record in _read_complete_records(path):
            if question_hashes.get(record["item"]) == record["asked"]:
                responses.setdefault(record["item"], _to_response(record))
    return responses


def answers_fingerprint(decided_by: Mapping[str, Any]) -> str:
    """Return a hash of what decides answers besides the questions."""
    return hashlib.sha256(json.dumps(dict(decided_by), sort_keys=True).encode()).hexdigest()


def _hash_question(item: Item) -> str:
    """Return a hash of a question."""
    picture_keys = [picture.key for picture in item.pictures]
    return hashlib.sha256(json.dumps([item.prompt, *picture_keys]).encode()).hexdigest()[:16]


def _to_response(record: Mapping[str, Any]) -> Response:
    optional = {
        name: record[name]
        for name, expected_type in _OPTIONAL_FIELDS.items()
        if type(record.get(name)) is expected_type
    }
    return Response(text=record["response"], **optional)


def _read_complete_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without damaged lines."""
    try:
        records = [line.record for line in read_lines(path)]
    except OSError:  # its questions are answered again
        return []
    return [record for record in records if record is not None and record.keys() >= _REQUIRED_KEYS]


def _ends_with_newline(path: Path) -> bool:
    if not path.exists():
        return True
    with path.open("rb") as file:
        text = file.read()
    return not text or text.endswith(b"\n")
