"""What all tests share."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

from chip_core.utils.exit import end_without_libraries

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

#: The files that take longest, of their own time and of waiting by turns, so that of the workers
#: which begin together one waits while the others compute.
LONG = (
    "e2e/test_program.py",
    "chip_core/training/test_parallel.py",
    "orchestrator/test_damage.py",
    "orchestrator/executors/test_conformance.py",
    "orchestrator/storage/test_study.py",
    "chip_core/training/test_exactness.py",
    "faults/test_faults.py",
    "e2e/test_stopping.py",
    "orchestrator/executors/test_ray_tune.py",
    "orchestrator/executors/test_slot_trials.py",
    "orchestrator/executors/test_ray_storage.py",
    "cluster/test_loopback.py",
    "orchestrator/tracking/test_ui.py",
    "test_architecture.py",
)

# How long an example takes says how busy the machine is. Half of the usual examples: properties
# that few of them break say for themselves how many they need.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")

_status = 1  # of the whole run, once it is known
end_without_libraries(lambda: _status)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Remember how the tests ended."""
    global _status
    _status = int(exitstatus)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: begun last, one would run on by itself."""
    long = {ROOT / "tests" / name: place for place, name in enumerate(LONG)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (long.get(item.path, len(LONG)), -sizes[item.path]))


def pytest_collectstart() -> None:
    """Let the collector rest while all is imported: nothing of it is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep the collector from looking through all that was imported, which stays: 0.4 s a time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
