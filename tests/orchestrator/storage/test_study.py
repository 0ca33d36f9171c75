"""A study through a storage: the same figures, and no machine needs another's disk."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chip_core.reference_cache.folder import CACHE_KEY
from chip_core.results import CURVES, Progress
from chip_core.training.checkpoint import list_checkpoints
from chip_core.utils.files import read_json, write_json
from orchestrator.executors import inline
from orchestrator.executors.base import Job
from orchestrator.executors.inline import InlineExecutor
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan, make_plan, trial_key
from orchestrator.report.results import RunOutcome
from orchestrator.report.writers.files import report_folder
from orchestrator.run import CACHE_RECORDS_FILE, run_study
from orchestrator.state.cache import list_caches, prunable_caches, prune_caches, verify_caches
from orchestrator.state.ledger import Ledger
from orchestrator.state.removal import apply_removal, plan_removal
from orchestrator.storage.binding import STORAGE_FILE, bind_storage, find_storage
from orchestrator.storage.download import NODE_CACHE_VARIABLE
from orchestrator.storage.remote import RemoteStorage
from orchestrator.study.load import load_study
from orchestrator.study.model import StudyChanges

from ..conftest import SHORT, TINY
from ..fakes import FakeTracker, InlineTracker
from .conftest import BUCKET

Run = Callable[..., RunOutcome]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(TINY)
    changes = StudyChanges(overrides={**SHORT, "engine.checkpoint_every": 2})
    return make_plan(load_study(path, changes), lambda model: {"content": "the model"})


@pytest.fixture(scope="module")
def run(plan: Plan) -> Run:
    """Run the study inline."""

    def ran(workdir: Path, uri: str | None = None, **options: Any) -> RunOutcome:
        remote, stop = bind_storage(workdir, uri), options.pop("stop", None) or StopRequest()
        return run_study(
            plan,
            workdir=workdir,
            executor=lambda: InlineExecutor(stop, workdir=workdir, remote=remote),
            tracker=options.pop("tracker", FakeTracker()),
            console=Console(quiet=True),
            stop=stop,
            **options,
        )

    return ran


@pytest.fixture(scope="module")
def plain_workdir(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of the study without a storage."""
    workdir = tmp_path_factory.mktemp("plain")
    assert run(workdir).executed == 3
    return workdir


@dataclass(frozen=True, kw_only=True)
class FinishedStudy:
    """What the study left that has run through a storage, with MLflow."""

    folder: Path  # which has all of it but an S3 storage
    uri: str
    outcome: RunOutcome

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def cache(self) -> Path:
        """What the machine copied."""
        return self.folder / "one"


@pytest.fixture(scope="module", params=["folder", "s3"])
def finished(
    request: pytest.FixtureRequest, run: Run, tmp_path_factory: pytest.TempPathFactory,
    with_store: Callable[[Path], Path],
) -> FinishedStudy:  # fmt: skip
    folder = tmp_path_factory.mktemp("finished")
    uri = str(folder / "shared")
    if request.param == "s3":
        request.getfixturevalue("s3")
        uri = f"s3://{BUCKET}/{folder.name}"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv(NODE_CACHE_VARIABLE, str(folder / "one"))
        # Before the storage is settled, as the command does it.
        tracker = InlineTracker(with_store(folder / "work"))
        outcome = run(folder / "work", uri, tracker=tracker)
    return FinishedStudy(folder=folder, uri=uri, outcome=outcome)


@pytest.fixture
def copied_workdir(
    finished: FinishedStudy, tmp_path: Path, become_machine: Callable[[str], Path]
) -> Path:
    """A copy of its work directory, bound to a copy of its storage."""
    work, shared = tmp_path / "work", tmp_path / "shared"
    shutil.copytree(finished.uri, shared)
    shutil.copytree(finished.work, work, ignore=shutil.ignore_patterns("mlflow.db*"))
    write_json(work / STORAGE_FILE, {**read_json(work / STORAGE_FILE), "storage": str(shared)})
    return work


def read_figures(workdir: Path) -> dict[str, Any]:
    """Return what trials came to: metrics and loss curves."""
    found = {}
    for mark, record in Ledger(workdir).items():
        metrics = [each.evaluation.metrics for each in record.evaluations.values()]
        folder = workdir / next(iter(record.evaluations.values())).folder
        curve = folder / CURVES
        losses = [line.split('"loss": ')[1].split(",")[0]
                  for line in curve.read_text().splitlines()] if curve.exists() else []  # fmt: skip
        found[mark] = (metrics, losses)
    return found


def hash_models(sizes_of: RemoteStorage, tmp_path: Path) -> dict[str, str]:
    """Return the sha256 of every model in a storage, by its trial."""
    found = {}
    for number, key in enumerate(sizes_of.sizes("trials")):
        if re.fullmatch(r"trials/\w+/attempt-\d+/model/model.safetensors", key):
            sizes_of.get(key, tmp_path / f"weights-{number}")
            content = (tmp_path / f"weights-{number}").read_bytes()
            found[key.split("/")[1]] = hashlib.sha256(content).hexdigest()
    return found


def test_the_figures_are_those_without(
    run: Run,
    finished: FinishedStudy,
    plain_workdir: Path,
    tmp_path: Path,
    become_machine: Callable[[str], Path],
) -> None:
    work, outcome = finished.work, finished.outcome
    assert outcome.executed == 3 and not outcome.failed
    assert read_figures(work) == read_figures(plain_workdir)
    assert hash_models(RemoteStorage(finished.uri), tmp_path) == hash_models(
        RemoteStorage(str(plain_workdir)), tmp_path
    )
    # Weights lie in the storage alone, a store's files on machines that read them.
    assert not list(work.rglob("*.safetensors"))
    kept = read_json(report_folder(work, outcome.summary.plan.study.name) / CACHE_RECORDS_FILE)
    made = [record for record in kept if record["state"] == "made"]
    assert len(made) == 3  # the fourth, features of rejected images, is read by one trial alone
    stores = {path.name for path in finished.cache.glob(f"*/{CACHE_KEY}/*") if path.is_dir()}
    assert stores == {record["hash"] for record in made}
    assert not list(finished.cache.glob("*/jobs/*/"))
    engines = {record.engine["reference"] for _, record in Ledger(work).items()
               if record.engine}  # fmt: skip
    assert engines == {"stored"}
    assert run(work).executed == 0


def test_artifacts_lie_in_the_storage_too(finished: FinishedStudy, plan: Plan) -> None:
    artifacts = RemoteStorage(finished.uri).sizes("artifacts")
    assert sum(key.endswith("/report/report.html") for key in artifacts) == 1
    assert sum(key.endswith("/config.json") for key in artifacts) == len(plan.trials)
    assert not (finished.work / "artifacts").exists()


@pytest.mark.parametrize("finished", ["folder"], indirect=True)
def test_another_driver_finds_what_is_done(
    run: Run, finished: FinishedStudy, tmp_path: Path, become_machine: Callable[[str], Path]
) -> None:
    # another machine's, with nothing but the URI
    outcome = run(tmp_path / "another", finished.uri)
    assert outcome.executed == 0 and not outcome.summary.remaining
    assert read_figures(tmp_path / "another") == read_figures(finished.work)


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_training_goes_on_elsewhere(
    run: Run,
    remote: RemoteStorage,
    uri: str,
    plain_workdir: Path,
    tmp_path: Path,
    become_machine: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, really = StopRequest(), inline.execute_job

    def interrupted(job: Job, report: Callable[[Progress], None], *rest: Any) -> Any:
        def told(progress: Progress) -> None:
            report(progress)
            if progress.phase == "train" and progress.done == 2:
                stop.request()

        return really(job, told, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(inline, "execute_job", interrupted)
        assert run(tmp_path / "work", uri, stop=stop).interrupted
    left = [key for key in remote.sizes("trials") if "/checkpoints/" in key]
    assert any(key.endswith("state.pt") for key in left)
    become_machine("another")
    outcome = run(tmp_path / "work", uri)
    assert not outcome.failed and not outcome.summary.remaining
    assert {mark: metrics for mark, (metrics, _) in read_figures(tmp_path / "work").items()} == {
        mark: metrics for mark, (metrics, _) in read_figures(plain_workdir).items()
    }
    assert hash_models(remote, tmp_path) == hash_models(RemoteStorage(str(plain_workdir)), tmp_path)
    notes = [note for _, record in Ledger(tmp_path / "work").items() for note in record.notes]
    assert any(note.startswith("resumed after step ") for note in notes), notes


@pytest.mark.parametrize("finished", ["folder"], indirect=True)
def test_stores_are_listed_and_pruned(copied_workdir: Path) -> None:
    work, remote = copied_workdir, bind_storage(copied_workdir, None)
    assert remote is not None
    stores = list_caches(work, Ledger(work))
    assert {kept.state for kept in stores} == {"whole"}
    assert sum(kept.bytes for kept in stores) == sum(remote.sizes(CACHE_KEY).values())
    cut = next(key for key in remote.sizes(CACHE_KEY) if key.endswith("shard-00000.safetensors"))
    remote.write(cut, b"short")
    broken = [kept for kept in list_caches(work, Ledger(work)) if kept.state == "broken"]
    assert [kept.problem for kept in broken] == [
        f"shard-00000.safetensors is cut off: 5 of {_get_recorded_size(remote, cut)} bytes"
    ]
    verify_caches(stores, Console(quiet=True), work)
    assert [kept.state for kept in stores].count("broken") == 1
    assert len(prunable_caches(stores, None)) == len(stores)
    prune_caches(stores, work)
    assert remote.sizes(CACHE_KEY) == {} and list_caches(work, Ledger(work)) == []


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_store_that_went_is_computed_in_the_step(
    run: Run,
    uri: str,
    plain_workdir: Path,
    tmp_path: Path,
    become_machine: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really = inline.execute_job

    def without(job: Job, *arguments: Any) -> Any:
        if job.caches is not None:  # what this machine copied goes, as if it had never come
            shutil.rmtree(job.caches.cache)
        return really(job, *arguments)

    monkeypatch.setattr(inline, "execute_job", without)
    assert not run(tmp_path / "work", uri).failed
    assert read_figures(tmp_path / "work") == read_figures(plain_workdir)
    notes = [note for _, record in Ledger(tmp_path / "work").items() for note in record.notes]
    assert any("is not used: it does not exist; computed in the step" in note for note in notes)


@pytest.mark.parametrize("finished", ["folder"], indirect=True)
def test_what_is_removed_goes_there_too(plan: Plan, copied_workdir: Path) -> None:
    work, remote = copied_workdir, bind_storage(copied_workdir, None)
    assert remote is not None
    before = sum(size for key, size in remote.sizes("trials").items() if "model" in key)
    going = plan_removal(work, plan.study.name)
    assert going.bytes > before > 0
    apply_removal(work, going)
    assert remote.sizes("trials") == {} and find_storage(work) is not None


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_what_a_dead_job_left_on_a_machine_goes(
    run: Run, uri: str, tmp_path: Path, become_machine: Callable[[str], Path]
) -> None:
    settled = bind_storage(tmp_path / "work", uri)
    assert settled is not None
    from orchestrator.storage.download import node_cache_folder

    jobs = node_cache_folder(settled) / "jobs"
    (jobs / "dead").mkdir(parents=True)
    write_json(jobs / "dead" / "model.json", {})
    (jobs / "dead.lock").touch()  # nobody holds it
    run(tmp_path / "work")
    assert not (jobs / "dead").exists()


def _get_recorded_size(remote: RemoteStorage, key: str) -> int:
    (content,) = remote.read([f"{key.rpartition('/')[0]}/manifest.json"]).values()
    return int(json.loads(content)["files"]["shard-00000.safetensors"]["bytes"])


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_an_attempt_of_a_driver_that_lost_its_ledger_is_counted(
    run: Run,
    remote: RemoteStorage,
    uri: str,
    plain_workdir: Path,
    tmp_path: Path,
    become_machine: Callable[[str], Path],
) -> None:
    """The storage has attempt 1, unfinished; a new work directory begins with attempt 2."""
    mark = next(mark for mark, record in Ledger(plain_workdir).items() if record.model)
    remote.write(f"{trial_key(mark)}/attempt-1/config.json", b"{}")
    run(tmp_path / "work", uri)
    assert list_checkpoints(tmp_path / "work") == []
    assert sorted(Ledger(tmp_path / "work")[mark].history) == [2]
