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

from chip_core.config.benchmark import DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.evaluation.generators.answering import InferenceContext, generate_answers
from chip_core.models import loading
from chip_core.results import Answers
from chip_core.utils.files import read_checksummed
from orchestrator.cli import main

ARCHIVE = Path(__file__).parent / "earlier" / "82a6933.tar.xz"
TABLES = ("report.csv", "values.csv")

pytestmark = pytest.mark.usefixtures("blank_figures")


def read_runs(database: Path) -> dict[str, dict[str, Any]]:
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
    before = read_runs(tmp_path / "runs" / "mlflow.db")
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
    assert read_runs(tmp_path / "runs" / "mlflow.db") == before


def test_answers_that_an_earlier_version_kept_are_not_made_again(tmp_path: Path) -> None:
    """Of the untrained model by its content, of a trained one by the mark of its training."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    kinds = set()
    for attempt in sorted(tmp_path.glob("runs/trials/*/attempt-1")):
        config = TrialConfig.model_validate_json((attempt / "config.json").read_text())
        weights = json.dumps(loading.identity(config.model), sort_keys=True)
        trained = attempt / "trained.json"
        former = [str(read_checksummed(trained)["mark"])] if trained.exists() else []
        kinds.add(bool(former))
        context = InferenceContext(
            model=None,  # is asked nothing
            processor=None,
            weights="their content" if former else weights,
            former_weights=former,
            folder=tmp_path / "now" / attempt.parent.name,
            data_paths=DataPaths(),
            earlier=[attempt],
        )
        for settings in config.benchmarks.report:
            found = generate_answers(context, "report", settings)
            assert isinstance(found, Answers) and found.metadata["taken_over"] == found.items
            assert "pace" not in found.metadata and "cut" not in found.metadata
            kept = (attempt / "responses" / f"report-{settings.name}.jsonl").read_bytes()
            assert (context.folder / found.responses).read_bytes() == kept
    assert kinds == {True, False}
