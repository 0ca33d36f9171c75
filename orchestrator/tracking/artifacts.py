"""Collect a trial's artifacts: curves, configuration, responses, scores."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chip_core.results import CONFIG, CURVES
from chip_core.utils.files import parse_checksummed
from orchestrator.tracking.client import MlflowStore, Point, Run

_SAMPLE = 50  # responses shown per benchmark


class Curve:
    """Sends a growing curves.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / CURVES
        self._sent = 0  # bytes

    def send(self, store: MlflowStore, run: Run) -> None:
        """Send the new points. An incomplete line is sent later."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._sent)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if whole:
            store.log_points(run, _points(whole))
            self._sent += len(whole)


def stage(folders: Sequence[Path], into: Path) -> list[str]:
    """Copy a trial's files to a folder of artifacts, and return the names of those that are tables.

    If attempts have a file of the same name, the last one counts. The configuration is that of the
    last attempt that trained.
    """
    configured = [folder for folder in folders if (folder / CONFIG).is_file()]
    trained = [folder for folder in configured if (folder / CURVES).is_file()]
    for folder in (trained or configured)[-1:]:
        shutil.copyfile(folder / CONFIG, into / "config.json")
    tables: dict[str, None] = {}
    for folder in folders:
        for scores in filter(Path.is_file, sorted(folder.glob("scores/*.json"))):
            (into / "scores").mkdir(exist_ok=True)
            shutil.copyfile(scores, into / "scores" / scores.name)
        for responses in filter(Path.is_file, sorted(folder.glob("responses/*.jsonl"))):
            if (table := _table(responses)) is not None:
                name = f"responses/{responses.stem}.json"
                (into / "responses").mkdir(exist_ok=True)
                (into / name).write_text(json.dumps(table, indent=1), encoding="utf-8")
                tables[name] = None
    return list(tables)


def _points(text: bytes) -> Iterator[Point]:
    for line in text.split(b"\n"):
        # Incomplete or damaged lines are left out; the ledger is authoritative.
        with suppress(ValueError, KeyError, TypeError):
            point = parse_checksummed(line)
            yield Point(
                step=int(point["step"]),
                milliseconds=int(point["time"] * 1000),
                figures=dict(point["figures"]),
            )


def _table(path: Path) -> dict[str, Any] | None:
    """Return the first responses of a file in MLflow's table format."""
    rows = []
    with path.open("rb") as file:
        for line in itertools.islice(file, _SAMPLE):
            with suppress(ValueError):
                rows.append(parse_checksummed(line))
    if not rows:
        return None
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    return {"columns": columns, "data": cells}


def _cell(value: Any) -> Any:
    nested = isinstance(value, (dict, list))
    return json.dumps(value, ensure_ascii=False) if nested else value
