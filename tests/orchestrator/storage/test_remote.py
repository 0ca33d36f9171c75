"""Files below a URI: the same for a shared folder and for an object store."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chip_core.utils.errors import StorageError, UserError
from orchestrator.storage import remote as remote_module
from orchestrator.storage.remote import RemoteStorage, validate_uri


def test_put_and_written_files_can_be_read(remote: RemoteStorage, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    remote.put(tmp_path / "weights", "trials/a/model/weights")
    remote.write("trials/b/result.json", b"{}")
    assert remote.sizes("trials") == {"trials/a/model/weights": 5, "trials/b/result.json": 2}
    assert remote.sizes("trials/a") == {"trials/a/model/weights": 5}
    assert remote.read(["trials/b/result.json", "trials/c"]) == {"trials/b/result.json": b"{}"}
    remote.get("trials/a/model/weights", tmp_path / "here" / "weights")
    assert (tmp_path / "here" / "weights").read_bytes() == b"12345"


def test_a_name_that_another_begins_with_is_another(remote: RemoteStorage) -> None:
    remote.write("cache/abc/x", b"1")
    remote.write("cache/abc.partial/x", b"22")
    assert remote.sizes("cache/abc") == {"cache/abc/x": 1}


def test_what_is_written_again_is_read_again(remote: RemoteStorage) -> None:
    for content in (b"a line\n", b"a line\nanother\n"):
        remote.write("job/progress.jsonl", content)
        assert remote.sizes("job") == {"job/progress.jsonl": len(content)}
        assert remote.read(["job/progress.jsonl"]) == {"job/progress.jsonl": content}


def test_copied_and_removed(remote: RemoteStorage) -> None:
    remote.write("a/x", b"1")
    remote.copy("a/x", "b/y")
    remote.remove(["a/x", "a/never"])
    assert (remote.sizes("a"), remote.sizes("b")) == ({}, {"b/y": 1})
    remote.remove_all("b")
    assert remote.sizes("b") == {}


def test_an_empty_storage_has_no_files(remote: RemoteStorage, tmp_path: Path) -> None:
    assert remote.sizes("trials") == {}
    with pytest.raises(FileNotFoundError):
        remote.get("trials/x", tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        remote.put(tmp_path / "gone", "x")
    assert not list(tmp_path.glob(".x*")) and not (tmp_path / "x").exists()


def test_a_storage_is_pickled_as_its_uri(remote: RemoteStorage) -> None:
    remote.write("x", b"1")
    assert pickle.loads(pickle.dumps(remote)).read(["x"]) == {"x": b"1"}


def test_a_storage_that_can_be_written_passes_the_check(remote: RemoteStorage) -> None:
    remote.require_writable()
    assert remote.sizes() == {}
    remote.write("a/x", b"1")
    assert remote.sizes() == {"a/x": 1}


def test_keys_that_lead_out_are_left_out(s3: None) -> None:
    import boto3

    for key in ("out/trials/a/../../../../x", "out/trials//x", "out/trials/a/x"):
        boto3.client("s3").put_object(Bucket="studies", Key=key, Body=b"1")
    assert RemoteStorage("s3://studies/out", pauses=()).sizes("trials") == {"trials/a/x": 1}


def test_a_bucket_that_is_not_there(s3: None) -> None:
    remote = RemoteStorage("s3://no-such-bucket/here", pauses=())
    with pytest.raises(UserError, match=r"^--storage: s3://no-such-bucket/here: cannot be written"):
        remote.require_writable()
    with pytest.raises(StorageError, match="s3://no-such-bucket/here: x cannot be written"):
        remote.write("x", b"")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/here: cannot be written \(NotADirectoryError"):
        RemoteStorage(str(tmp_path / "file" / "here")).require_writable()


def test_a_read_that_fails_is_tried_again(
    remote: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteStorage(remote.uri, pauses=(0.0, 0.0))
    remote.write("x", b"1")
    fs, calls = remote._filesystem, []
    really = fs.cat

    def fails_twice(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) <= 2:
            raise ConnectionError("gone")
        return really(*arguments, **options)

    monkeypatch.setattr(fs, "cat", fails_twice)
    assert remote.read(["x"]) == {"x": b"1"}
    calls.clear()
    with pytest.raises(StorageError, match="a file cannot be read: ConnectionError: gone"):
        # fsspec's cache gives it the same file system.
        RemoteStorage(remote.uri, pauses=(0.0,)).read(["x"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nosuch://bucket/x", "is not a supported kind of object store"),
        ("memory://x", "is not a supported kind of object store"),
        ("s3://key:secret@bucket/x", "a user or password would be written to disk"),
        ("s3://", "does not name a folder"),
    ],
)
def test_uris_that_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        validate_uri(text)
    assert "secret" not in str(caught.value)


def test_a_uri_is_normalized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert validate_uri("shared") == str(tmp_path / "shared")
    assert validate_uri("s3://bucket/x/") == "s3://bucket/x"


def test_what_cannot_be_read_is_no_empty_folder(tmp_path: Path) -> None:
    remote = RemoteStorage(str(tmp_path), pauses=())
    remote.write("trials/a", b"1")
    remote.write("trials/b/c", b"1")

    def fails(folder: str, onerror: Callable[[OSError], None]) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied"))
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_module.os, "walk", fails)
        with pytest.raises(StorageError, match="trials cannot be listed: PermissionError"):
            remote.sizes("trials")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"--storage: gs://b/x: .*pip install 'chip-ablate\[gcs\]'"):
        RemoteStorage("gs://b/x", pauses=()).require_writable()
    with pytest.raises(StorageError, match=r"pip install 'chip-ablate\[gcs\]'"):
        RemoteStorage("gs://b/x", pauses=()).sizes()


def test_what_says_that_something_is_whole_goes_first(remote: RemoteStorage) -> None:
    for name in ("a/model/w", "a/result.json", "a/trained.json"):
        remote.write(name, b"")
    gone: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "remove", gone.extend)
        remote.remove_all("a")
    assert gone[2] == "a/model/w"
