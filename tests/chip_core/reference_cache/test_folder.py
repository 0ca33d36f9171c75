"""A store's folder: whole or not at all, checked, made by one at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chip_core.reference_cache import folder as folders
from chip_core.reference_cache.folder import (
    SHARD_ROWS,
    BrokenStoreError,
    build_lock,
    commit,
    partial_folder,
    read_lock_owner,
    read_recorded_file,
    remove,
    shard_name,
    store_folder,
    verify,
)
from chip_core.reference_cache.shards import OpenedStore, write_shard
from chip_core.reference_cache.size import DiskSpaceError, check_disk_space

IDENTITY = {"kind": "text", "model": {"content": "abc"}, "layers": (1, 2)}
ROWS = SHARD_ROWS + 3


def make_row(number: int) -> dict[str, torch.Tensor]:
    """Make a row whose lengths and values are a function of its number."""
    chosen, rejected = 1 + number % 5, 2 + number % 3
    return {
        "chosen.ids": torch.full((chosen,), number, dtype=torch.int32),
        "chosen.hidden": torch.full((chosen, 4), number / 8, dtype=torch.bfloat16),
        "rejected.ids": torch.arange(rejected, dtype=torch.int32),
    }


def write_store(cache: Path) -> Path:
    """Write a whole store of two shards."""
    folder = store_folder(cache, "0123456789" * 6)
    partial = partial_folder(folder)
    write_shard(partial, 0, [make_row(number) for number in range(SHARD_ROWS)])
    write_shard(partial, 1, [make_row(number) for number in range(SHARD_ROWS, ROWS)])
    names = [shard_name(0), shard_name(1)]
    commit(folder, identity=IDENTITY, rows=ROWS, names=names, made={"seconds": 1.0})
    return folder


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def flip_bit(path: Path) -> None:
    """Change one bit of the last byte, and nothing of what the file system says."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = OpenedStore(write_store(tmp_path), IDENTITY)
    assert len(store) == ROWS
    for number in (0, 1, SHARD_ROWS - 1, SHARD_ROWS, ROWS - 1):
        for column, values in make_row(number).items():
            read = store.row(number, column)
            assert read.dtype == values.dtype
            assert torch.equal(read, values)
    # rows 255, 0 and 258 are 1 + 0, 1 + 0 and 1 + 3 tokens long
    several = store.rows([255, 0, 258], "chosen.ids")
    assert several.tolist() == [255, 0, 258, 258, 258, 258]
    assert store.manifest.bytes == sum(
        path.stat().st_size for path in store.folder.glob("*.safetensors")
    )


def test_what_is_half_written_is_no_store(tmp_path: Path) -> None:
    folder = store_folder(tmp_path, "ab")
    write_shard(partial_folder(folder), 0, [make_row(0)])
    with pytest.raises(BrokenStoreError, match="it does not exist"):
        OpenedStore(folder)
    with pytest.raises(BrokenStoreError, match=r"shard-00001\.safetensors was not built"):
        commit(folder, identity={}, rows=300, names=[shard_name(0), shard_name(1)], made={})
    assert not folder.exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / shard_name(1)).unlink(), r"shard-00001\.safetensors is missing"),
        (
            lambda f: os.truncate(f / shard_name(1), 100),
            r"shard-00001\.safetensors is cut off: 100 of \d+ bytes",
        ),
        (lambda f: flip_bit(f / shard_name(0)), r"shard-00000\.safetensors is corrupt"),
        (
            lambda f: rewrite_json(f / "manifest.json", lambda raw: raw.update(format=0)),
            "its format is 0, but only 1 is known",
        ),
        (
            lambda f: rewrite_json(f / "manifest.json", lambda raw: raw.pop("files")),
            r"manifest\.json cannot be read \(KeyError\)",
        ),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), "it does not exist"),
        (
            lambda f: rewrite_json(
                f / "manifest.json", lambda raw: raw["identity"]["model"].update(content="def")
            ),
            "it belongs to another model, data set or setting",
        ),
    ],
)
def test_a_damaged_store_is_never_opened(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    folder = write_store(tmp_path)
    OpenedStore(folder, IDENTITY)
    damage(folder)
    with pytest.raises(BrokenStoreError, match=said):
        OpenedStore(folder, IDENTITY)


def test_files_are_hashed_once_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_store(tmp_path)
    hashed: list[str] = []
    sha256 = folders.hash_file

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(folders, "hash_file", counted)
    verify(folder)
    assert hashed == []  # whoever made it, here, has hashed it
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    verify(folder)
    verify(folder)
    assert sorted(hashed) == [shard_name(0), shard_name(1)]
    os.utime(folder / shard_name(1))
    verify(folder)
    assert hashed[2:] == [shard_name(1)]
    verify(folder, rehash=True)
    assert len(hashed) == 5


def test_a_file_of_an_interrupted_making_is_taken_over_only_if_whole(tmp_path: Path) -> None:
    partial = tmp_path / "ab.partial"
    write_shard(partial, 0, [make_row(0)])
    assert read_recorded_file(partial, shard_name(0)) is not None
    assert read_recorded_file(partial, shard_name(1)) is None
    flip_bit(partial / shard_name(0))
    assert read_recorded_file(partial, shard_name(0)) is None
    write_shard(partial, 0, [make_row(0)])
    os.truncate(partial / shard_name(0), 10)
    assert read_recorded_file(partial, shard_name(0)) is None


def test_an_open_store_that_is_removed_reads_on(tmp_path: Path) -> None:
    folder = write_store(tmp_path)
    store = OpenedStore(folder)
    remove(folder)
    assert not any(tmp_path.iterdir())
    assert torch.equal(
        store.row(SHARD_ROWS + 1, "chosen.hidden"), make_row(SHARD_ROWS + 1)["chosen.hidden"]
    )
    with pytest.raises(BrokenStoreError, match="it does not exist"):
        OpenedStore(folder)


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 5 * 10**9})())
    check_disk_space(tmp_path / "not" / "there", 5 * 10**9, "the pass")
    with pytest.raises(
        DiskSpaceError,
        match=r"not enough space for the pass: 21\.3 GB are needed in .*, but only 5\.0 GB are",
    ):
        check_disk_space(tmp_path, 21_300_000_000, "the pass")


def test_a_disk_that_fills_up_is_told_in_one_line(tmp_path: Path) -> None:
    # The largest file that this process may write stands for the disk's end; in a process of its
    # own, because the limit cannot be raised again.
    program = textwrap.dedent(
        """
        import errno, resource, signal, sys
        from pathlib import Path
        import torch
        from chip_core.reference_cache import shards
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        errno.ENOSPC = errno.EFBIG
        try:
            shards.write_shard(Path(sys.argv[1]), 0, [{"chosen.ids": torch.zeros(1000)}])
        except shards.DiskSpaceError as error:
            sys.exit(str(error))
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "ab.partial")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"the disk of {tmp_path / 'ab.partial'} is full: free some space, and run again"
    ]
    assert not list((tmp_path / "ab.partial").iterdir())


HOLDER = """
import sys, time
from pathlib import Path
from chip_core.reference_cache.folder import build_lock
with build_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start_lock_holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Start a process that makes a store, for so long."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_builder_waits_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    with start_lock_holder(folder, 1.5) as process:
        assert str(read_lock_owner(folder)).startswith(f"process {process.pid} on ")
        told: list[str] = []
        with build_lock(folder, told.append):
            assert process.wait(timeout=5) == 0  # it ended before this one began
        assert len(told) == 1
        assert told[0].startswith(f"process {process.pid} on ")
    assert read_lock_owner(folder) is None
    assert not any(tmp_path.iterdir())  # no lock is left


def test_a_killed_maker_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    with start_lock_holder(folder, 60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=5)
    began = time.monotonic()
    assert read_lock_owner(folder) is None
    with build_lock(folder):
        pass
    assert time.monotonic() - began < 5
