"""What is kept: listed, checked, pruned."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from chip_core.reference_cache.folder import (
    build_lock,
    commit,
    partial_folder,
    shard_name,
    store_folder,
)
from chip_core.reference_cache.shards import write_shard
from chip_core.reference_cache.spec import CacheSpec
from chip_core.utils.files import JsonlWriter, read_records
from orchestrator.plan.plan import Plan
from orchestrator.run import run_study
from orchestrator.runner.jobs import make_jobs
from orchestrator.state.cache_plan import USES_FILE, cache_folder, plan_caches
from orchestrator.state.ledger import Ledger

from ..fakes import FakeExecutor, FakeTracker, make_result
from ..program import run_program

PlanOf = Callable[..., Plan]


def write_store(workdir: Path, one: CacheSpec, rows: int = 3) -> Path:
    """Write a store with something in it."""
    folder = store_folder(cache_folder(workdir), one.key)
    values = [{"chosen.ids": torch.ones(2, dtype=torch.int32)}] * rows
    write_shard(partial_folder(folder), 0, values)
    made = {"time": time.time(), "seconds": 1.0}
    commit(folder, identity=one.identity, rows=rows, names=[shard_name(0)], made=made)
    return folder


@pytest.fixture
def stores(plan_of: PlanOf, tmp_path: Path) -> list[Path]:
    """Two stores that the trials of a study wait for."""
    plan = plan_of(overrides={"engine.feature_cache": "off"})
    passes = [planned.spec for planned in plan_caches(plan, Ledger(tmp_path), tmp_path)]
    folders = [write_store(tmp_path, one) for one in passes]
    uses = JsonlWriter(cache_folder(tmp_path) / USES_FILE)
    trials = [trial.fingerprint for trial in plan_of().trials if not trial.untrained]
    for folder in folders:
        use = {"time": time.time(), "study": "small", "pass": folder.name, "trials": trials}
        uses.append(use)
    uses.close()
    return folders


def list_caches(workdir: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    run_program("cache", "--workdir", str(workdir), "--json", *arguments)
    return json.loads(capsys.readouterr().out)


def set_age(workdir: Path, folder: Path, days: float) -> None:
    """Let a store have been made and used so long ago."""
    then = time.time() - days * 24 * 3600
    manifest = folder / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["made"]["time"] = then
    manifest.write_text(json.dumps(raw))
    file = cache_folder(workdir) / USES_FILE
    uses = read_records(file)
    for use in uses:
        use["time"] = then if use["pass"] == folder.name else use["time"]
    file.write_text("".join(json.dumps(use) + "\n" for use in uses))


def test_nothing_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("cache", "--workdir", str(tmp_path / "none")) == 0
    assert "no reference passes in" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert run_program("cache", "--workdir", str(tmp_path / "none"), "--prune") == 0


def test_what_is_kept_is_listed(
    stores: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text, image = stores
    found = {entry["hash"]: entry for entry in list_caches(tmp_path, capsys)["stores"]}
    assert set(found) == {text.name, image.name}
    assert found[text.name]["pass"] == "text, hidden states in fp32 (the mode)"
    assert found[text.name]["studies"] == ["small"]
    assert found[text.name]["waiting"] == 8
    assert found[text.name]["samples"] == 3
    assert found[text.name]["state"] == "whole"
    size = sum(path.stat().st_size for path in text.iterdir())
    assert found[text.name]["bytes"] == size
    assert run_program("cache", "--workdir", str(tmp_path)) == 0
    assert "small (8 trials to run)" in " ".join(capsys.readouterr().out.split())


def test_a_flipped_bit_is_found_though_no_time_changed(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("cache", "--workdir", str(tmp_path), "--check") == 0
    file = stores[0] / shard_name(0)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    # As a disk loses a bit: nothing tells that the file was written to.
    stat = file.stat()
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    (verified,) = stores[0].glob(".verified-*")
    verified.write_text(json.dumps({shard_name(0): mark}))
    assert run_program("cache", "--workdir", str(tmp_path)) == 0
    assert run_program("cache", "--workdir", str(tmp_path), "--check") == 1
    found = list_caches(tmp_path, capsys, "--check", "--prune", "--yes")
    assert found["removed"] == [stores[0].name]
    assert [entry["problem"] for entry in found["stores"] if entry["state"] == "broken"] == [
        "shard-00000.safetensors is corrupt: its sha256 is not the manifest's"
    ]
    assert not stores[0].exists()
    assert stores[1].exists()


def test_what_trials_wait_for_stays(
    stores: list[Path],
    plan_of: PlanOf,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list_caches(tmp_path, capsys, "--prune", "--yes")["removed"] == []
    ledger = Ledger(tmp_path)
    for job, trial, attempt in make_jobs(plan_of(), ledger, tmp_path):
        ledger.record_result(trial, "small", attempt, "trials/x", make_result(job))
    assert list_caches(tmp_path, capsys)["stores"][0]["waiting"] == 0
    monkeypatch.setattr("click.confirm", lambda *given, **options: False)
    assert list_caches(tmp_path, capsys, "--prune")["removed"] == []  # asked, and no
    assert all(folder.exists() for folder in stores)
    monkeypatch.setattr("click.confirm", lambda *given, **options: True)
    removed = list_caches(tmp_path, capsys, "--prune")["removed"]
    assert sorted(removed) == sorted(folder.name for folder in stores)
    assert [path.name for path in cache_folder(tmp_path).iterdir()] == [USES_FILE]


def test_what_was_not_used_for_long_goes(
    stores: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_age(tmp_path, stores[1], days=40)
    assert list_caches(tmp_path, capsys, "--prune", "--yes", "--older-than", "41")["removed"] == []
    removed = list_caches(tmp_path, capsys, "--prune", "--yes", "--older-than", "39")["removed"]
    assert removed == [stores[1].name]
    assert run_program("cache", "--older-than", "3") == 2
    assert "--older-than and --yes need --prune" in capsys.readouterr().err


def test_what_is_half_made_goes_unless_it_is_being_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cache_folder(tmp_path) / ("ab" * 16)
    write_shard(partial_folder(folder), 0, [{"chosen.ids": torch.ones(2)}])
    os.makedirs(f"{folder}.jobs/part-1-of-1")
    with build_lock(folder):
        found = list_caches(tmp_path, capsys, "--prune", "--yes")
        assert [entry["state"] for entry in found["stores"]] == ["being made"]
        assert found["removed"] == []
    found = list_caches(tmp_path, capsys, "--prune", "--yes")
    assert [entry["state"] for entry in found["stores"]] == ["half-made"]
    assert found["removed"] == [folder.name]
    assert not list(cache_folder(tmp_path).iterdir())


def test_a_study_notes_what_it_uses_before_it_begins(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of()
    run_study(
        plan,
        workdir=tmp_path,
        executor=FakeExecutor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    (line,) = (cache_folder(tmp_path) / USES_FILE).read_text().splitlines()
    use = json.loads(line)
    assert use["study"] == "small"
    assert len(use["trials"]) == 8
