"""An MLflow store that is made once, and attempts' folders as a worker leaves them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from chip_core.utils.files import write_json
from orchestrator.plan.plan import Plan, Trial
from orchestrator.tracking.address import resolve_uri
from orchestrator.tracking.views import TrialView
from orchestrator.utils.version import code_version

from ..fakes import InlineTracker

FIGURES = ("loss", "reward/margin", "grad_norm")


@pytest.fixture(autouse=True)
def _without_model_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chip_core.models.loading.find_model_problem", lambda model: None)


@pytest.fixture
def workdir(
    tmp_path: Path, with_store: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = with_store(tmp_path / "work")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")  # fewer waits for the disk
    return folder


@pytest.fixture
def tracker(workdir: Path) -> InlineTracker:
    return InlineTracker(workdir, None)


@pytest.fixture
def write_attempt(tmp_path: Path) -> Callable[..., Path]:
    """Write what an attempt leaves in its folder."""
    count = Counter[str]()

    def write(trial: Trial, steps: int = 3, items: int = 60, time: float = 1000.0) -> Path:
        count[trial.fingerprint] += 1
        folder = tmp_path / "trials" / trial.fingerprint[:8] / f"attempt-{count.total()}"
        write_json(folder / "config.json", trial.config.model_dump(mode="json"))
        write_points(folder, range(1, steps + 1), time)
        (folder / "responses").mkdir()
        rows = [
            {"item": f"i{n}", "prompt": "What?", "response": "a ball", "truth": ["ball", "cube"]}
            for n in range(items)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "responses" / "report-shapes.jsonl").write_text(text)
        write_json(folder / "scores" / "report-shapes.json", {"metrics": []})
        return folder

    return write


def write_points(folder: Path, steps: range, time: float = 1000.0) -> None:
    """Append points to an attempt's curves; the value is a function of the step."""
    with (folder / "curves.jsonl").open("a") as file:
        for step in steps:
            figures = {name: float(step * place) for place, name in enumerate(FIGURES, start=1)}
            file.write(json.dumps({"step": step, "time": time + step, "figures": figures}) + "\n")


def make_running_view(trial: Trial, folders: Sequence[Path]) -> TrialView:
    """Make the view of a trial that runs."""
    return TrialView(
        trial=trial,
        status="RUNNING",
        metrics={},
        folders=folders,
        seconds={},
        data={},
        code=code_version(),
    )


@pytest.fixture
def finish_trial(write_attempt: Callable[..., Path]) -> Callable[..., TrialView]:
    """What is to be seen of a trial that ended well."""

    def view(trial: Trial, chair_i: float = 12.5, **changes: Any) -> TrialView:
        given: dict[str, Any] = {
            "status": "FINISHED",
            "metrics": {"shapes/chair_i": chair_i},
            "folders": [write_attempt(trial)] if "folders" not in changes else [],
            "seconds": {"train": 2.0, "score report/shapes": 1.0},
            "data": {},
            "engine": {"reference": "stored", "prefix_sharing": "on"},
        }
        return TrialView(trial=trial, **{**given, **changes})

    return view


class MlflowContents:
    """What a person who opens MLflow sees of a study."""

    def __init__(self, workdir: Path, study: str = "small") -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(resolve_uri(workdir, None))
        self.experiment = self.client.get_experiment_by_name(study)
        assert self.experiment is not None, f"no experiment {study}"
        self.runs = list(self.client.search_runs([self.experiment.experiment_id]))

    def count_kinds(self) -> Counter[str]:
        return Counter(run.data.tags["chip.kind"] for run in self.runs)

    def list_runs(self, kind: str) -> list[Any]:
        return [run for run in self.runs if run.data.tags["chip.kind"] == kind]

    def find_trial_run(self, trial: Trial) -> Any:
        kind = "base" if trial.untrained else "trial"
        [run] = [run for run in self.list_runs(kind) if run.info.run_name == trial.name]
        return run

    def find_arm_run(self, name: str) -> Any:
        [run] = [run for run in self.list_runs("arm") if run.info.run_name == name]
        return run

    def read_history(self, run: Any, key: str) -> list[Any]:
        return list(self.client.get_metric_history(run.info.run_id, key))

    def list_files(self, run: Any, under: str | None = None) -> list[str]:
        return sorted(file.path for file in self.client.list_artifacts(run.info.run_id, under))


@pytest.fixture
def read_mlflow(workdir: Path) -> Callable[..., MlflowContents]:
    return lambda study="small": MlflowContents(workdir, study)


@pytest.fixture
def run_all_trials(finish_trial: Callable[..., TrialView]) -> Callable[..., list[TrialView]]:
    """Run a plan's trials through a tracker, as the driver would; return what they came to."""

    def run(tracker: InlineTracker, plan: Plan) -> list[TrialView]:
        views = [finish_trial(trial) for trial in plan.trials]
        tracker.open(plan, [])
        for view in views:
            tracker.show(make_running_view(view.trial, view.folders))
            tracker.show(view)
        return views

    return run


def wait_until(is_true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something is true; fail if it is not by then."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
