"""Many rows are looked at by several processes, and come out as from one."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import DataConfig
from chip_core.data import checks
from chip_core.data.checks import GoodRow, processes_for, told_of_rows
from chip_core.data.preferences import SourcePairs, load_pairs
from chip_core.data.rows import BadRow, RowError
from chip_core.data.source import DataSource, open_source
from chip_core.utils.errors import ConfigError, TrialError

from . import files

ROWS = 50
BAD = (0, 6, 7, 20, 49)

forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture(params=["parquet", "jsonl"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataSource:
    rows = [files.rlhf_v(n, **({"chosen": ""} if n in BAD else {})) for n in range(ROWS)]
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        files.write_parquet(path, rows)
    else:
        (tmp_path / "a.jpg").write_bytes(files.picture())
        path.write_text(
            "".join(
                json.dumps({"id": row["idx"], "image": "a.jpg", **_texts(row)}) + "\n"
                for row in rows
            )
        )
    return open_source(DataConfig(source=str(path)))


def _texts(row: dict[str, Any]) -> dict[str, str]:
    said = json.loads(row["text"])
    return {"prompt": said["question"], "chosen": said["chosen"], "rejected": said["rejected"]}


def tell(good: GoodRow) -> tuple[int, str, tuple[int, int], bool]:
    return good.row.index, good.row.texts.chosen, good.size, os.getpid() == MAIN


MAIN = os.getpid()


@forks
@pytest.mark.parametrize("processes", [2, 3, 5])
def test_rows_come_in_order_whoever_looked_at_them(
    source: DataSource, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(checks, "BLOCK", 7)  # of 50 rows the last block has one
    alone = list(told_of_rows(source, tell))
    together = list(told_of_rows(source, tell, processes=processes))
    assert [number for number, told in enumerate(alone) if isinstance(told, BadRow)] == [*BAD]

    def plain(told: Any) -> Any:
        return str(told) if isinstance(told, BadRow) else told[:-1]

    assert [plain(told) for told in together] == [plain(told) for told in alone]
    assert all(told[-1] for told in alone if not isinstance(told, BadRow))
    assert not any(told[-1] for told in together if not isinstance(told, BadRow))
    assert not multiprocessing.active_children()


@forks
def test_pairs_are_the_same(source: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BLOCK", 7)
    done: list[tuple[int, int]] = []
    made = [
        SourcePairs(source),
        SourcePairs(source, lambda *told: done.append(told), processes=3),
    ]
    assert done == [(number, ROWS) for number in range(1, ROWS + 1)]  # progress, row by row
    one, other = ([(pair.id, pair.chosen) for pair in pairs] for pairs in made)
    assert one == other and len(one) == ROWS - len(BAD)
    assert list(made[0].lengths) == list(made[1].lengths)
    assert list(map(str, made[0].skipped)) == list(map(str, made[1].skipped))


@forks
def test_many_rows_are_looked_at_by_several(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "FEW", ROWS)
    monkeypatch.setattr(checks, "cores", lambda: 4)
    asked: list[int] = []

    def counted(*given: Any, processes: int, **held: Any) -> Any:
        asked.append(processes)
        return told_of_rows(*given, processes=processes, **held)

    monkeypatch.setattr("chip_core.data.preferences.told_of_rows", counted)
    config = DataConfig(source=str(source.place(0).file), on_bad_row="skip")
    assert len(load_pairs(config, sharing=2)) == ROWS - len(BAD)
    assert asked == [2]


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(checks, "cores", lambda: 16)
    assert [processes_for(rows) for rows in (1, 1_999, 2_000, 83_000)] == [1, 1, 8, 8]
    assert [processes_for(83_000, sharing) for sharing in (2, 4, 8, 32)] == [8, 4, 2, 1]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes_for(83_000) == 1


@forks
def test_a_process_that_is_ended_ends_the_check(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BLOCK", 7)

    def ended(good: GoodRow) -> int:
        if good.row.index == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return good.row.index

    told = []
    with pytest.raises(TrialError, match="a process that looks at rows was ended"):
        for each in told_of_rows(source, ended, processes=2):
            told.append(each)
    assert 0 < len(told) <= 28  # the block before
    assert not multiprocessing.active_children()


@forks
@pytest.mark.parametrize("failure", [ConfigError(["one", "two"]), ValueError("odd")])
def test_what_one_fails_by_is_raised_here(
    source: DataSource, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(checks, "BLOCK", 7)

    def fails(good: GoodRow) -> int:
        if good.row.index == 30:
            raise failure
        return good.row.index

    with pytest.raises(type(failure)) as caught:
        list(told_of_rows(source, fails, processes=2))
    assert str(caught.value) == str(failure)
    assert getattr(caught.value, "problems", None) == getattr(failure, "problems", None)


@forks
def test_nobody_goes_on_when_nobody_asks_any_more(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BLOCK", 7)

    def slow(good: GoodRow) -> int:
        if good.row.index >= 7:  # the first block comes, and each process has another
            time.sleep(600)
        return good.row.index

    rows = told_of_rows(source, slow, processes=3)
    next(rows)
    assert len(multiprocessing.active_children()) == 3
    rows.close()
    assert not multiprocessing.active_children()


def test_a_bad_row_and_a_reason_go_from_process_to_process(source: DataSource) -> None:
    bad = BadRow(place=source.place(3), reason="odd")
    assert pickle.loads(pickle.dumps(bad)) == bad
    assert str(pickle.loads(pickle.dumps(RowError("odd")))) == "odd"


@forks  # and there alone it says what is mapped
def test_of_a_file_that_was_read_nothing_stays(tmp_path: Path) -> None:
    """A parquet file is gone through with one of its pages in memory, whatever its length."""
    import pyarrow as pa

    noise = os.urandom(100_000)  # which does not compress
    image = {"bytes": noise, "path": "0.jpg"}
    rows = [files.rlhf_v(n, image={**image, "bytes": noise + b"%d" % n}) for n in range(120)]
    path = files.write_parquet(tmp_path / "a.parquet", rows, row_group_size=3, use_dictionary=False)
    table = open_source(DataConfig(source=str(path))).tables[0]
    before, held = pa.total_allocated_bytes(), []
    for read in table.scan():
        assert len(read()["image"]["bytes"]) > 100_000
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 120
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "a.parquet" in line
    ]
    assert not mapped
    # A batch of 16 rows, a page of 3 and a buffer.
    assert max(held) < 3_000_000 < path.stat().st_size / 3
