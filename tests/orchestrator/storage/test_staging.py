"""A job's files on a machine that does not see the work directory."""

from __future__ import annotations

import fcntl
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.results import Progress
from chip_core.trained import TrainedModel, write_trained
from orchestrator.jobs.job import COPYING_PHASE, Job
from orchestrator.storage.download import NODE_CACHE_VARIABLE
from orchestrator.storage.remote import RemoteStorage
from orchestrator.storage.staging import StagingSpec

JOB = "trials/0123/attempt-2"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagingSpec:
    monkeypatch.setenv(NODE_CACHE_VARIABLE, str(tmp_path / "machine"))
    return StagingSpec(
        remote=RemoteStorage(str(tmp_path / "storage")), workdir=tmp_path / "work", token="j2-abc"
    )


def make_job(workdir: Path, **changes: object) -> Job:
    config = TrialConfig(model=ModelConfig(path="shapes"))
    return Job(id="j2", name="dpo, seed 0", config=config, folder=workdir / JOB, **changes)


def test_the_first_to_come_is_the_last_to_go(spec: StagingSpec) -> None:
    """Two workers on one machine: what the second writes after the first's end is there, too."""
    come, gone = threading.Event(), threading.Event()

    def second() -> None:
        assert come.wait(30)
        with spec.workspace(spec.workdir / JOB) as workspace:
            gone.set()
            waited = threading.Event()
            waited.wait(0.3)  # the first has come to its end by then
            (workspace.folder / "result.json").write_text("{}")

    other = threading.Thread(target=second)
    other.start()
    with spec.workspace(spec.workdir / JOB) as workspace:
        come.set()
        assert gone.wait(30)
    other.join()
    assert spec.remote.sizes() == {f"{JOB}/result.json": 2}
    assert not workspace.root.exists()


def test_a_first_one_that_failed_does_not_wait_for_others(spec: StagingSpec) -> None:
    """They wait for it themselves, in a collective, until Train ends them."""
    come, ended = threading.Event(), threading.Event()

    def second() -> None:
        with spec.workspace(spec.workdir / JOB):
            come.set()
            ended.wait(60)

    other = threading.Thread(target=second)
    began = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="boom"),
        spec.workspace(spec.workdir / JOB) as workspace,
    ):
        other.start()
        assert come.wait(30)
        raise RuntimeError("boom")
    assert time.monotonic() - began < 50 and not ended.is_set()
    assert not workspace.root.exists()
    ended.set()
    other.join()


def test_a_job_that_is_at_work_is_not_taken_for_dead(spec: StagingSpec, tmp_path: Path) -> None:
    other = StagingSpec(remote=spec.remote, workdir=spec.workdir, token="j3-def")
    with spec.workspace(spec.workdir / JOB) as workspace, other.workspace(tmp_path / "work" / "x"):
        assert workspace.folder.is_dir()
    jobs = workspace.root.parent
    (jobs / "dead").mkdir()
    (jobs / "dead.lock").touch()
    (jobs / "held").mkdir()
    with (jobs / "held.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with other.workspace(tmp_path / "work" / "x"):
            pass
        assert [path.name for path in jobs.iterdir() if path.is_dir()] == ["held"]


def test_what_a_job_needs_is_copied_and_told(spec: StagingSpec) -> None:
    remote, before = spec.remote, "trials/0123/attempt-1"
    for name in ("config.json", "answers/a.jsonl", "trained.json", "model/config.json",
                 "model/model.safetensors", "checkpoints/step-00000002/state.pt"):  # fmt: skip
        remote.write(f"{before}/{name}", name.encode())
    told: list[Progress] = []
    with spec.workspace(spec.workdir / JOB) as workspace:
        earlier = spec.workdir / before
        brought = workspace.stage(
            make_job(spec.workdir, resume_from=earlier, earlier_attempts=(earlier,)), told.append
        )
        assert brought.folder == workspace.root / JOB and brought.share_files is not None
        assert brought.resume_from == workspace.root / before and brought.earlier_attempts == (
            workspace.root / before,
        )
        here = {path.relative_to(workspace.root / before).as_posix()
                for path in (workspace.root / before).rglob("*") if path.is_file()}  # fmt: skip
        assert here == {"config.json", "answers/a.jsonl", "trained.json", "model/config.json",
                        "model/model.safetensors"}  # fmt: skip
        # It takes the model over: one of the two folders has it.
        (workspace.root / before / "model").rename(workspace.folder / "model")
        (workspace.folder / "trained.json").write_text("{}")
    assert {progress.phase for progress in told} == {COPYING_PHASE}
    # of the attempt without its weights 4 files, the same again to resume from, of its model 2
    assert [(each.done, each.total) for each in told] == [
        *((number, 4) for number in range(1, 5)), *((number, 4) for number in range(1, 5)),
        (1, 2), (2, 2),
    ]  # fmt: skip
    there = remote.sizes()
    assert f"{JOB}/model/model.safetensors" in there
    left = {key.removeprefix(f"{before}/") for key in there if key.startswith(before)}
    assert left == {"config.json", "answers/a.jsonl", "trained.json"}


def test_models_that_were_kept_come_with_their_weights_and_go_when_one_is_picked(
    spec: StagingSpec,
) -> None:
    before, kept = "trials/0123/attempt-1", "kept/step-00000002"
    for name in (f"{kept}/model.safetensors", f"{kept}.json", "checkpoints/step-00000003/state.pt"):
        spec.remote.write(f"{before}/{name}", b"{}")
    left = f"{JOB}/model/step-00000002/model.safetensors"
    spec.remote.write(left, b"{}")  # copied before it was picked from
    scored = TrialConfig.model_validate({"model": "shapes", "training": {"score_at": [0.5]}})
    with spec.workspace(spec.workdir / JOB) as workspace:
        earlier = spec.workdir / before
        given = make_job(spec.workdir, resume_from=earlier, earlier_attempts=(earlier,))
        workspace.stage(replace(given, config=scored), print)
        assert (workspace.root / before / kept / "model.safetensors").exists()
        (workspace.folder / "model").mkdir(parents=True)
        (workspace.folder / "model/model.safetensors").write_text("{}")
        picked = {"step": 2, "points": [{"step": 2, "figures": {}}]}
        write_trained(workspace.folder, TrainedModel(steps=4, seconds=1.0, picked=picked))
    there = spec.remote.sizes()
    assert left not in there and f"{JOB}/model/model.safetensors" in there
    assert not any(key.startswith(f"{before}/kept") for key in there)


def test_where_the_model_is_gone_checkpoints_come(spec: StagingSpec) -> None:
    before = "trials/0123/attempt-1"
    for name in ("trained.json", "checkpoints/step-00000002/state.pt",
                 "checkpoints/step-00000004/state.pt",
                 "checkpoints/step-00000004/manifest.json"):  # fmt: skip
        spec.remote.write(f"{before}/{name}", b"{}")
    with spec.workspace(spec.workdir / JOB) as workspace:
        workspace.stage(make_job(spec.workdir, resume_from=spec.workdir / before), print)
        assert (workspace.root / before / "checkpoints/step-00000004/state.pt").exists()


def test_a_training_that_asks_judges_has_their_replies_and_leaves_its_rounds_once(
    spec: StagingSpec,
) -> None:
    before, rounds = "trials/0123/attempt-1", "rounds/1/pairs.jsonl"
    spec.remote.write(f"{before}/{rounds}", b"{}\n")
    spec.remote.write("cache/judge/other.jsonl", b"{}\n")
    pairs = {"rounds": 1, "ranker": "judge", "judge": "m"}
    config = TrialConfig.model_validate({"model": "shapes", "pairs": pairs})
    with spec.workspace(spec.workdir / JOB) as workspace:
        earlier = spec.workdir / before
        given = replace(make_job(spec.workdir, earlier_attempts=(earlier,)), config=config)
        brought = workspace.stage(given, print)
        assert brought.data_paths.judge_cache is not None
        assert (brought.data_paths.judge_cache / "replies.jsonl").exists()
        (workspace.root / before / "rounds").rename(workspace.folder / "rounds")  # taken over
        (workspace.folder / "model").mkdir()
        write_trained(workspace.folder, TrainedModel(steps=4, seconds=1.0))
    there = spec.remote.sizes()
    assert f"{JOB}/{rounds}" in there and f"{before}/{rounds}" not in there
