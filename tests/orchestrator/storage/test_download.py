"""Which storage a work directory has, and what of it lies in the work directory."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.trained import TrainedModel, find_model_problem, hash_model_files, write_trained
from chip_core.utils.errors import UserError
from chip_core.utils.files import read_json, write_json
from orchestrator.plan.plan import trial_key
from orchestrator.storage import binding
from orchestrator.storage.binding import STORAGE_FILE, bind_storage, exclusive_lease, find_storage
from orchestrator.storage.download import (
    artifact_uri,
    fetch_trained_attempt,
    fetch_trials,
)
from orchestrator.storage.remote import RemoteStorage

MARK = "0123456789abcdef" * 4
ATTEMPT = f"{trial_key(MARK)}/attempt-1"


def test_it_is_the_work_directory_itself_by_default(tmp_path: Path) -> None:
    assert bind_storage(tmp_path / "work", None) is None
    assert not (tmp_path / "work").exists()


def test_the_storage_is_named_once(tmp_path: Path, uri: str) -> None:
    work = tmp_path / "work"
    first = bind_storage(work, uri)
    assert first is not None and first.uri == uri
    assert read_json(work / STORAGE_FILE)["storage"] == uri
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    for wish in (None, uri):
        again = bind_storage(work, wish)
        assert again is not None and again.uri == uri
    with pytest.raises(UserError, match=r"^--storage: .*work keeps its trials in .*: leave"):
        bind_storage(work, str(tmp_path / "other"))


def test_trials_do_not_move_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "work" / "trials").mkdir(parents=True)
    with pytest.raises(UserError, match="the trials of .*work are in the work directory itself"):
        bind_storage(tmp_path / "work", str(tmp_path / "shared"))


def test_one_that_cannot_be_used_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        bind_storage(tmp_path / "work", str(tmp_path / "file" / "here"))
    assert not (tmp_path / "work").exists()


def test_one_that_was_emptied_or_is_not_mounted_is_refused(tmp_path: Path) -> None:
    work, shared = tmp_path / "work", tmp_path / "shared"
    bind_storage(work, str(shared))
    shared.rename(tmp_path / "elsewhere")
    for wish in (None, str(shared)):
        with pytest.raises(
            UserError, match="is not the storage that .*work was created with: it is not mou"
        ):
            bind_storage(work, wish)
    assert not shared.exists()
    (tmp_path / "elsewhere").rename(shared)
    assert bind_storage(work, None) is not None


def test_one_work_directory_at_a_time(tmp_path: Path, uri: str) -> None:
    works = [tmp_path / name for name in ("work", "other")]
    remotes = [bind_storage(work, uri) for work in works]
    with (
        exclusive_lease(remotes[0], works[0]),
        exclusive_lease(remotes[0], works[0]),  # two studies of one
        pytest.raises(UserError, match=f"is used by a study of {works[0]} on .*: wait"),
        exclusive_lease(remotes[1], works[1]),
    ):
        pass
    with exclusive_lease(remotes[1], works[1]):
        pass


def test_a_claim_of_a_driver_that_was_killed_ends(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [tmp_path / name for name in ("work", "other")]
    first, second = (bind_storage(work, uri) for work in works)
    assert first is not None
    claim = {"host": "gone", "workdir": "/w", "time": time.time() - binding.LEASE_SECONDS - 1}
    first.write(f"{binding.LEASES_FOLDER}/0123.json", json.dumps(claim).encode())
    with exclusive_lease(second, works[1]):
        pass


def test_a_broken_note_is_told(tmp_path: Path) -> None:
    (tmp_path / STORAGE_FILE).write_text("[]")
    with pytest.raises(
        UserError, match=r"storage.json: cannot be read \(TypeError\): remove it, and use"
    ):
        find_storage(tmp_path)


def test_artifacts_go_where_mlflow_can_put_them(tmp_path: Path) -> None:
    inside = (tmp_path / "work" / "artifacts").as_uri()
    assert artifact_uri(tmp_path / "work") == inside
    for uri, place in (
        ("s3://bucket/x", "s3://bucket/x/artifacts"),
        ("/mnt/shared/x", "file:///mnt/shared/x/artifacts"),
        ("gs://bucket/x", inside),  # another package's than the storage's
    ):
        write_json(tmp_path / "work" / STORAGE_FILE, {"storage": uri, "mark": "", "workdir": ""})
        assert artifact_uri(tmp_path / "work") == place


def test_all_but_weights_comes(remote: RemoteStorage, tmp_path: Path) -> None:
    other = f"{trial_key('f' * 64)}/attempt-1/result.json"
    names = ["result.json", "model/config.json", "model/model.safetensors",
             "checkpoints/step-00000002/state.pt",
             "checkpoints/step-00000002/manifest.json"]  # fmt: skip
    for key in (*(f"{ATTEMPT}/{name}" for name in names), other):
        remote.write(key, key.encode())
    fetch_trials(remote, tmp_path / "work", [trial_key(MARK)])
    here = {path.relative_to(tmp_path / "work" / ATTEMPT).as_posix()
            for path in (tmp_path / "work").rglob("*") if path.is_file()}  # fmt: skip
    assert here == {"result.json", "model/config.json", "checkpoints/step-00000002/manifest.json"}
    assert not (tmp_path / "work" / other).exists()


def test_what_grew_comes_again_and_a_model_that_went_goes(
    remote: RemoteStorage, tmp_path: Path
) -> None:
    remote.write(f"{ATTEMPT}/curves.jsonl", b"1\n")
    remote.write(f"{ATTEMPT}/model/config.json", b"{}")
    fetch_trials(remote, tmp_path, [trial_key(MARK)])
    remote.write(f"{ATTEMPT}/curves.jsonl", b"1\n2\n")
    remote.remove_all(f"{ATTEMPT}/model")
    fetch_trials(remote, tmp_path, [trial_key(MARK)])
    assert (tmp_path / ATTEMPT / "curves.jsonl").read_bytes() == b"1\n2\n"
    assert not (tmp_path / ATTEMPT / "model").exists()


def test_a_whole_attempt(
    remote: RemoteStorage, uri: str, tmp_path: Path, become_machine: Callable[[str], Path]
) -> None:
    for name in ("trained.json", "config.json", "model/config.json", "model/model.safetensors",
                 "result.json"):  # fmt: skip
        remote.write(f"{ATTEMPT}/{name}", name.encode())
    bind_storage(tmp_path / "work", uri)
    found = fetch_trained_attempt(tmp_path / "work", ATTEMPT)
    assert found.is_relative_to(become_machine("one"))
    names = sorted(path.name for path in (found / "model").iterdir())
    assert names == ["config.json", "model.safetensors"]
    names = sorted(path.name for path in found.iterdir() if path.is_file())
    assert names == ["config.json", "trained.json"]
    assert fetch_trained_attempt(tmp_path / "plain", ATTEMPT) == tmp_path / "plain" / ATTEMPT
    remote.remove_all(ATTEMPT)
    with pytest.raises(UserError, match="attempt-1: the trained model is gone: run its"):
        fetch_trained_attempt(tmp_path / "work", ATTEMPT)


def test_a_copy_of_a_model_that_is_not_what_was_trained_comes_again(
    remote: RemoteStorage, uri: str, tmp_path: Path, become_machine: Callable[[str], Path]
) -> None:
    become_machine("one")
    made = tmp_path / "made"
    (made / "model").mkdir(parents=True)
    (made / "model" / "model.safetensors").write_bytes(b"weights")
    write_trained(made, TrainedModel(steps=1, seconds=1.0, files=hash_model_files(made / "model")))
    remote.write(f"{ATTEMPT}/config.json", b"{}")
    for name in ("trained.json", "model/model.safetensors"):
        remote.write(f"{ATTEMPT}/{name}", (made / name).read_bytes())
    bind_storage(tmp_path / "work", uri)
    copy = fetch_trained_attempt(tmp_path / "work", ATTEMPT) / "model" / "model.safetensors"
    copy.write_bytes(b"wEights")  # of the same size
    assert find_model_problem(copy.parent) is not None
    fetch_trained_attempt(tmp_path / "work", ATTEMPT)
    assert copy.read_bytes() == b"weights"
    assert find_model_problem(copy.parent) is None
