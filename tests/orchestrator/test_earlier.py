"""A work directory and an MLflow store of version 82a6933 are taken over: nothing is run again.

`earlier/82a6933.tar.xz` was made by that version, without trained models and figures:

    chip-ablate run kept.yaml --workdir runs --executor inline --set training.max_steps=2
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.cli import main

ARCHIVE = Path(__file__).parent / "earlier" / "82a6933.tar.xz"
TABLES = ("report.csv", "values.csv")

pytestmark = pytest.mark.usefixtures("blank_figures")


def runs_of(database: Path) -> dict[str, dict[str, Any]]:
    """Return each run's figures, params and tags by its id."""
    client = MlflowClient(f"sqlite:///{database}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    return {
        run.info.run_id: {
            "name": run.info.run_name,
            "status": run.info.status,
            "figures": run.data.metrics,
            "params": run.data.params,
        }
        for run in client.search_runs(experiments)
    }


def test_what_an_earlier_version_left_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    (report,) = Path("runs").glob("studies/*/report")
    tables = {name: (report / name).read_bytes() for name in TABLES}
    ledger = Path("runs/ledger/ledger.jsonl").read_bytes()
    before = runs_of(tmp_path / "runs" / "mlflow.db")
    # Four trials, the untrained model, two arms and the study.
    assert len(before) == 8 and all(run["status"] == "FINISHED" for run in before.values())

    command = "run kept.yaml --workdir runs --executor inline --set training.max_steps=2 --json"
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code in (None, 0)
    said = json.loads(capsys.readouterr().out)
    assert (said["executed"], said["left"], said["failed"]) == (0, 0, {})
    assert Path("runs/ledger/ledger.jsonl").read_bytes() == ledger
    assert {name: (report / name).read_bytes() for name in TABLES} == tables
    assert runs_of(tmp_path / "runs" / "mlflow.db") == before
