"""What is left of a study when it is done, held against the study that nothing happened to."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip_core.utils.files import read_records
from tests.faults.world import STEPS


@dataclass(kw_only=True)
class StudyState:
    """What a study came to, by arm ("base" too)."""

    figures: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)  # sha256 of the trained model
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    lost: int = 0  # finished trials that began again
    doubled: int = 0  # ledger records or runs of which there is more than one
    open_ends: int = 0  # attempts that began and whose end is in no record
    untracked: list[str] = field(default_factory=list)  # what MLflow does not show


def read_study_state(workdir: Path, database: Path | None = None) -> StudyState:
    """Read a work directory's ledger, its trials' folders and its MLflow store."""
    state = StudyState()
    entries = read_records(workdir / "ledger" / "ledger.jsonl")
    ends: Counter[tuple[str, int]] = Counter()
    begun: set[tuple[str, int]] = set()
    finished: set[str] = set()
    trained: dict[str, str] = {}  # the folder of the attempt whose model answered
    for entry in entries:
        mark, key = entry["fingerprint"], (entry["fingerprint"], entry["attempt"])
        if entry["event"] == "started":
            begun.add(key)
            state.lost += mark in finished
            state.attempts[entry["arm"]] = state.attempts.get(entry["arm"], 0) + 1
            continue
        if entry["event"] == "answered":  # on the way: its end is told once it is scored
            trained[mark] = entry["folder"]
            continue
        ends[key] += 1
        if entry["event"] == "finished":
            state.doubled += mark in finished
            finished.add(mark)
            arm = entry["arm"]
            state.figures[arm] = [each["metrics"] for each in entry["evaluations"].values()]
            _read_training(state, arm, workdir / trained.get(mark, entry["folder"]))
    state.doubled += sum(count - 1 for count in ends.values())
    state.open_ends = len(begun - ends.keys())
    _read_tracking(state, database or workdir / "mlflow.db")
    return state


def _read_training(state: StudyState, arm: str, folder: Path) -> None:
    model = folder / "model" / "model.safetensors"
    if not model.exists():
        return
    state.weights[arm] = hashlib.sha256(model.read_bytes()).hexdigest()
    state.losses[arm] = [
        (record["step"], record["figures"]["loss"])
        for record in read_records(folder / "curves.jsonl")
    ]


def _read_tracking(state: StudyState, database: Path) -> None:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        runs = store.execute(
            "select tags.value, runs.name, runs.status, runs.run_uuid from runs "
            "join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'chip.kind' and runs.lifecycle_stage = 'active'"
        ).fetchall()
        points = dict(
            store.execute(
                "select run_uuid, count(*) from metrics where key = 'train/loss' group by run_uuid"
            ).fetchall()
        )
    kinds = Counter(kind for kind, *_ in runs)
    wanted = {"study": 1, "arm": 2, "trial": 2, "base": 1}
    for kind, count in wanted.items():
        if kinds[kind] > count:
            state.doubled += kinds[kind] - count
        elif kinds[kind] < count:
            state.untracked.append(f"{count - kinds[kind]} run of kind {kind} is missing")
    for kind, name, status, run in runs:
        if status != "FINISHED":
            state.untracked.append(f"{kind} {name} is {status}")
        if kind == "trial" and points.get(run, 0) != STEPS:
            state.untracked.append(f"trial {name} has {points.get(run, 0)} points of its loss")


def find_differences(state: StudyState, undisturbed: StudyState) -> list[str]:
    """Return which figures, weights and losses are not the undisturbed study's, to the bit."""
    found = []
    for what in ("figures", "weights", "losses"):
        here, there = getattr(state, what), getattr(undisturbed, what)
        found += [
            f"{what} of {arm}"
            for arm in there
            if json.dumps(here.get(arm)) != json.dumps(there[arm])
        ]
    return found
