"""A job's files go to the storage: whole, in an order that a kill at any point leaves usable."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from chip_core.utils.files import write_json
from orchestrator.storage.remote import RemoteStorage
from orchestrator.storage.uploader import Uploader

JOB = "trials/a/attempt-1"


class RecordingStorage(RemoteStorage):
    """A storage that notes in which order it is written."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, pauses=())
        self.order: list[str] = []

    def put(self, path: Path, key: str) -> None:
        super().put(path, key)
        self.order.append(key.removeprefix(f"{JOB}/"))


@pytest.fixture
def recording_storage(tmp_path: Path) -> RecordingStorage:
    return RecordingStorage(str(tmp_path / "storage"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here" / JOB).mkdir(parents=True)
    return tmp_path / "here" / JOB


def make_uploader(remote: RemoteStorage, folder: Path, **options: object) -> Uploader:
    return Uploader(remote, [folder], folder.parents[2], interval=3600.0, **options)


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_what_says_that_something_is_whole_goes_last(
    recording_storage: RecordingStorage, folder: Path
) -> None:
    checkpoint = "checkpoints/step-00000002"
    write_files(folder, "result.json", "trained.json", "model/model.safetensors", "curves.jsonl",
          f"{checkpoint}/manifest.json", f"{checkpoint}/state.pt", "a.json")  # fmt: skip
    make_uploader(recording_storage, folder).copy()
    assert set(recording_storage.order[:2]) == {"a.json", "curves.jsonl"}
    assert recording_storage.order[2:] == [
        f"{checkpoint}/state.pt", f"{checkpoint}/manifest.json", "model/model.safetensors",
        "trained.json", "result.json",
    ]  # fmt: skip


def test_the_newest_checkpoint_is_whole_first(
    recording_storage: RecordingStorage, folder: Path
) -> None:
    for step in (2, 4):
        for name in ("manifest.json", "state.pt"):
            write_files(folder, f"checkpoints/step-{step:08d}/{name}")
    make_uploader(recording_storage, folder).copy()
    assert [name.removeprefix("checkpoints/step-0000000") for name in recording_storage.order] == [
        "4/state.pt", "4/manifest.json", "2/state.pt", "2/manifest.json",
    ]  # fmt: skip


def test_a_training_that_ends_meanwhile_keeps_its_checkpoints_there(
    recording_storage: RecordingStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(folder, "checkpoints/step-00000002/state.pt")
    copies = make_uploader(recording_storage, folder)
    copies.copy()
    looked = Path.rglob

    def ends(path: Path, pattern: str) -> list[Path]:
        found = list(looked(path, pattern))
        write_files(folder, "model/model.safetensors", "trained.json")  # just now
        return [each for each in found if "checkpoints" not in each.parts]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rglob", ends)
        copies.copy()
    assert recording_storage.sizes(JOB).keys() == {f"{JOB}/checkpoints/step-00000002/state.pt"}
    copies.copy()
    assert recording_storage.order[-2:] == ["model/model.safetensors", "trained.json"]


def test_what_is_not_whole_stays(recording_storage: RecordingStorage, folder: Path) -> None:
    write_files(folder, "model/model.safetensors", "checkpoints/.step-00000002.partial/state.pt",
          ".config.json.17.partial")  # fmt: skip
    copies = make_uploader(recording_storage, folder)
    copies.copy()
    assert recording_storage.order == []
    write_files(folder, "trained.json")  # written once the model is
    copies.copy()
    assert recording_storage.order == ["model/model.safetensors", "trained.json"]


def test_only_what_changed_is_copied_again(
    recording_storage: RecordingStorage, folder: Path
) -> None:
    write_files(folder, "curves.jsonl", "config.json")
    copies = make_uploader(recording_storage, folder)
    copies.copy()
    recording_storage.order.clear()
    with (folder / "curves.jsonl").open("a") as file:
        file.write("more")
    copies.copy()
    assert recording_storage.order == ["curves.jsonl"]
    assert (
        recording_storage.read([f"{JOB}/curves.jsonl"])[f"{JOB}/curves.jsonl"]
        == b"curves.jsonlmore"
    )


def test_what_went_goes_there_too(recording_storage: RecordingStorage, folder: Path) -> None:
    write_files(folder, "checkpoints/step-00000002/manifest.json", "config.json")
    copies = make_uploader(recording_storage, folder)
    copies.copy()
    (folder / "checkpoints/step-00000002/manifest.json").unlink()
    recording_storage.write(f"{JOB}/left-by-another", b"")
    copies.copy()
    assert set(recording_storage.sizes(JOB)) == {f"{JOB}/config.json", f"{JOB}/left-by-another"}


def test_all_is_there_at_the_end(recording_storage: RecordingStorage, folder: Path) -> None:
    with make_uploader(recording_storage, folder):
        write_json(folder / "result.json", {})
        assert recording_storage.sizes(JOB) == {}
    assert set(recording_storage.sizes(JOB)) == {f"{JOB}/result.json"}


def test_what_came_from_there_is_not_copied_back(
    recording_storage: RecordingStorage, folder: Path
) -> None:
    copies = make_uploader(recording_storage, folder)
    write_files(folder, "config.json")
    with copies.pause():
        write_files(folder, "shard.note.json")
    copies.copy()
    assert recording_storage.order == ["config.json"]


def test_the_driver_can_leave_a_file(recording_storage: RecordingStorage, folder: Path) -> None:
    asked = folder / "stop"
    copies = Uploader(
        recording_storage, [folder], folder.parents[2], incoming=[asked], interval=0.01
    )
    with copies:
        recording_storage.write(f"{JOB}/stop", b"")
        deadline = time.monotonic() + 30
        while not asked.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert asked.exists()
    assert recording_storage.order == []
