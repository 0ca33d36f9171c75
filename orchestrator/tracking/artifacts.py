"""Read the files of a trial that MLflow shows: curves, configuration, responses, scores."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chip_core.results import CONFIG, CURVES
from chip_core.utils.files import parse_checksummed
from orchestrator.tracking.client import Point

#: Prefix of a run's curves among its metrics.
CURVE = "train/"
_MAX_RESPONSES = 50  # shown per benchmark


def read_curve(folder: Path, start: int) -> tuple[list[Point], int]:
    """Return the points of a growing curves.jsonl from a byte on, and where the next ones start.

    An incomplete line at the end is read later.
    """
    file = folder / CURVES
    if not file.is_file():
        return [], start
    with file.open("rb") as opened:
        opened.seek(start)
        lines = opened.readlines()
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    points = []
    for record in _read_records(lines):
        with suppress(KeyError, TypeError, ValueError):  # damaged: the ledger is authoritative
            figures = {CURVE + name: value for name, value in dict(record["figures"]).items()}
            step, time = int(record["step"]), float(record["time"])
            points.append(Point(figures=figures, time=time, step=step))
    return points, start + sum(map(len, lines))


def stage_artifacts(folders: Sequence[Path], target: Path) -> list[str]:
    """Copy a trial's files to a folder of artifacts, and return the names of those that are tables.

    If attempts have a file of the same name, the last one counts. The configuration is that of the
    last attempt that trained.
    """
    configured = [folder for folder in folders if (folder / CONFIG).is_file()]
    trained = [folder for folder in configured if (folder / CURVES).is_file()]
    for folder in (trained or configured)[-1:]:
        shutil.copyfile(folder / CONFIG, target / "config.json")
    tables: dict[str, None] = {}
    for folder in folders:
        for scores in filter(Path.is_file, sorted(folder.glob("scores/*.json"))):
            (target / "scores").mkdir(exist_ok=True)
            shutil.copyfile(scores, target / "scores" / scores.name)
        for responses in filter(Path.is_file, sorted(folder.glob("responses/*.jsonl"))):
            if (table := _read_table(responses)) is not None:
                name = f"responses/{responses.stem}.json"
                (target / "responses").mkdir(exist_ok=True)
                (target / name).write_text(json.dumps(table, indent=1), encoding="utf-8")
                tables[name] = None
    return list(tables)


def _read_table(path: Path) -> dict[str, Any] | None:
    """Return the first responses of a file in MLflow's table format."""
    with path.open("rb") as file:
        rows = list(_read_records(itertools.islice(file, _MAX_RESPONSES)))
    if not rows:
        return None
    columns = list(rows[0])
    cells = [[_to_cell(row.get(column)) for column in columns] for row in rows]
    return {"columns": columns, "data": cells}


def _to_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _read_records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the records of lines; incomplete or damaged ones are left out."""
    for line in lines:
        with suppress(ValueError):
            yield parse_checksummed(line)
