"""The images of many rows are decoded in several threads; all comes out as from one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import DataConfig
from chip_core.data import checks, preferences
from chip_core.data.checks import ValidRow, check_rows, decode_threads
from chip_core.data.preferences import SourcePairs, load_pairs
from chip_core.data.rows import BadRow
from chip_core.data.source import DataSource, open_source

from . import files

ROWS = 50
#: Rows without a chosen response, and one whose image is cut.
BAD, CUT = (0, 6, 7, 49), 33


@pytest.fixture(params=["parquet", "jsonl"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> DataSource:
    rows = [files.make_rlhf_v_row(n, **({"chosen": ""} if n in BAD else {})) for n in range(ROWS)]
    whole = files.make_image_bytes()
    rows[CUT]["image"] = {"bytes": whole[: len(whole) // 2], "path": None}
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        files.write_parquet(path, rows)
    else:
        (tmp_path / "a.jpg").write_bytes(whole)
        (tmp_path / "cut.jpg").write_bytes(rows[CUT]["image"]["bytes"])
        path.write_text("".join(json.dumps(_to_json_row(row)) + "\n" for row in rows))
    return open_source(DataConfig(source=str(path)))


def _to_json_row(row: dict[str, Any]) -> dict[str, Any]:
    said = json.loads(row["text"])
    return {
        "id": row["idx"],
        "image": "cut.jpg" if row["idx"] == CUT else "a.jpg",
        "prompt": said["question"],
        "chosen": said["chosen"],
        "rejected": said["rejected"],
    }


def _to_comparable(found: ValidRow | BadRow) -> object:
    if isinstance(found, BadRow):
        return str(found)
    return found.row.index, found.row.texts, found.size


@pytest.mark.parametrize("threads", [2, 3])
def test_rows_come_in_order_whoever_decoded_them(source: DataSource, threads: int) -> None:
    alone = [_to_comparable(row) for row in check_rows(source)]
    assert [n for n, row in enumerate(alone) if isinstance(row, str)] == sorted([*BAD, CUT])
    assert [_to_comparable(row) for row in check_rows(source, threads=threads)] == alone


def test_pairs_are_the_same(source: DataSource) -> None:
    done: list[tuple[int, int]] = []
    one = SourcePairs(source)
    other = SourcePairs(source, lambda *told: done.append(told), threads=2)
    assert done == [(number, ROWS) for number in range(1, ROWS + 1)]  # progress, row by row
    assert [pair.id for pair in one] == [pair.id for pair in other]
    assert len(one) == ROWS - len(BAD) - 1
    assert list(one.lengths) == list(other.lengths)
    assert list(map(str, one.skipped)) == list(map(str, other.skipped))


def test_a_training_takes_its_share_of_the_cores(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_MIN_ROWS_FOR_THREADS", ROWS)
    monkeypatch.setattr(checks, "cpu_count", lambda: 4)
    asked: list[int] = []

    def counted(*given: Any, threads: int, **held: Any) -> Any:
        asked.append(threads)
        return check_rows(*given, threads=threads, **held)

    monkeypatch.setattr(preferences, "check_rows", counted)
    config = DataConfig(source=str(source.location(0).file), on_bad_row="skip")
    assert len(load_pairs(config, processes=2)) == ROWS - len(BAD) - 1
    assert asked == [2]


def test_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "cpu_count", lambda: 16)
    assert [decode_threads(rows) for rows in (1, 1_999, 2_000, 83_000)] == [1, 1, 8, 8]
    assert [decode_threads(83_000, sharing) for sharing in (2, 4, 8, 32)] == [8, 4, 2, 1]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nothing says what is mapped")
def test_of_a_file_that_was_read_nothing_stays(tmp_path: Path) -> None:
    """A parquet file is gone through with one of its pages in memory, whatever its length."""
    import pyarrow as pa

    noise = os.urandom(100_000)  # which does not compress
    image = {"bytes": noise, "path": "0.jpg"}
    rows = [
        files.make_rlhf_v_row(n, image={**image, "bytes": noise + b"%d" % n}) for n in range(120)
    ]
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
