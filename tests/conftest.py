"""What all tests share."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from chip_core.utils.exit import exit_before_native_cleanup

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

#: The files that take longest, of their own time and of waiting by turns, so that of the workers
#: which begin together one waits while the others compute; then those of few tests that take long,
#: which would come last.
LONGEST_FILES = (
    "e2e/test_program.py",
    "orchestrator/executors/test_conformance.py",
    "orchestrator/test_damage.py",
    "faults/test_faults.py",
    "chip_core/training/test_parallel.py",
    "orchestrator/executors/ray/test_clusters.py",
    "e2e/test_stopping.py",
    "chip_core/training/test_checkpoint.py",
    "orchestrator/executors/ray/test_storage.py",
    "chip_core/reference_cache/test_reader.py",
    "chip_core/training/footprint/test_estimate.py",
    "orchestrator/storage/test_study.py",
    "chip_core/training/test_exactness.py",
    "orchestrator/runner/test_cache_build.py",
    "chip_core/evaluation/test_run.py",
    "orchestrator/runner/test_phase.py",
    "orchestrator/test_rerun.py",
    "test_benchmarks.py",
    "chip_core/test_main.py",
    "chip_core/models/test_base_models.py",
    "chip_core/pairs/test_rounds.py",
    "orchestrator/cost/published/test_rates.py",
    "orchestrator/cost/test_commands.py",
    "orchestrator/tracking/test_ui.py",
    "orchestrator/tracking/test_sync.py",
    "test_architecture.py",
)

# How long an example takes says how busy the machine is. Half of the usual examples: properties
# that few of them break say for themselves how many they need.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")

_status = 1  # of the whole run, once it is known
exit_before_native_cleanup(lambda: _status)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Remember how the tests ended."""
    global _status
    _status = int(exitstatus)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: begun last, one would run on by itself."""
    long = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FILES)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (long.get(item.path, len(LONGEST_FILES)), -sizes[item.path]))


def pytest_collectstart() -> None:
    """Let the collector rest while all is imported: nothing of it is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep the collector from looking through all that was imported, which stays: 0.4 s a time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _isolated_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let nothing of the user's environment in, and nothing be written beside the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def oracles() -> Path:
    """The conformance cases with official figures, where they are present."""
    folder = SHARED / "oracles"
    if not folder.is_dir():
        pytest.skip("the conformance cases (../shared/oracles) are not here")
    return folder


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has set up, which takes it seconds: one for all of a run's workers."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    folder = place / "migrated"
    with FileLock(place / "migrated.lock"):
        if not folder.exists():
            from orchestrator.tracking.client import MlflowStore

            made = tmp_path_factory.mktemp("mlflow")
            MlflowStore(made).open("template")
            folder.mkdir()
            with (
                contextlib.closing(sqlite3.connect(made / "mlflow.db")) as database,
                contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as copy,
            ):
                database.backup(copy)
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def with_store(migrated_database: Path) -> Callable[[Path], Path]:
    """Make a work directory with a database in it that MLflow need not set up."""

    def made(workdir: Path) -> Path:
        workdir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(migrated_database, workdir / "mlflow.db")
        return workdir

    return made
