"""Images that decoded once are not decoded by the next check, and every result is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chip_core.config.trial import DataConfig
from chip_core.data import checks
from chip_core.data.checks import ValidRow, check_rows
from chip_core.data.image_files import ImageReader
from chip_core.data.rows import BadRow, ImageRef
from chip_core.data.source import DataSource, open_source
from chip_core.pairs.prompts import check_prompts

from . import files

ROWS = 6
BROKEN = 4  # the row whose image is cut


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checks, "_MIN_ROWS_FOR_THREADS", ROWS)
    return tmp_path / "cache" / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[ImageRef]:
    """The images that were decoded by the test so far."""
    size, images = ImageReader.size, list[ImageRef]()

    def counted(self: ImageReader, ref: ImageRef) -> tuple[int, int]:
        images.append(ref)
        return size(self, ref)

    monkeypatch.setattr(ImageReader, "size", counted)
    return images


@pytest.fixture(params=["bytes", "paths"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    pictures = [files.make_image_bytes(size=(20 + row, 30)) for row in range(ROWS)]
    pictures[BROKEN] = pictures[BROKEN][: len(pictures[BROKEN]) // 2]
    if request.param == "bytes":
        rows = [
            files.make_rlhf_v_row(row, image={"bytes": picture, "path": None})
            for row, picture in enumerate(pictures)
        ]
        return DataConfig(source=str(files.write_parquet(tmp_path / "rows.parquet", rows)))
    lines = []
    for row, picture in enumerate(pictures):
        (tmp_path / f"{row}.jpg").write_bytes(picture)
        texts = {"prompt": f"What is {row}?", "chosen": "A ball.", "rejected": "A cat."}
        lines.append(json.dumps({"id": row, "image": f"{row}.jpg", **texts}) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    return DataConfig(source=str(tmp_path / "rows.jsonl"))


def _list_results(source: DataSource, threads: int = 1) -> list[object]:
    return [
        str(row) if isinstance(row, BadRow) else (row.row.index, row.size)
        for row in check_rows(source, threads=threads)
    ]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_second_check_decodes_only_what_failed(
    data: DataConfig, decoded: list[ImageRef], threads: int
) -> None:
    first = _list_results(open_source(data), threads)
    assert len(decoded) == ROWS
    assert [row for row in first if isinstance(row, str)] == [first[BROKEN]]
    assert "image" in str(first[BROKEN])
    assert [row for row in first if not isinstance(row, str)] == [
        (row, (20 + row, 30)) for row in range(ROWS) if row != BROKEN
    ]
    decoded.clear()
    assert _list_results(open_source(data), threads) == first
    assert len(decoded) == 1


def test_a_check_of_prompts_knows_them_too(data: DataConfig, decoded: list[ImageRef]) -> None:
    bad = _list_results(open_source(data))[BROKEN]
    decoded.clear()
    results = list(check_prompts(data))
    assert [str(row) for row in results if row is not None] == [bad]
    assert len(decoded) == 1


def test_other_bytes_are_decoded(data: DataConfig, decoded: list[ImageRef], tmp_path: Path) -> None:
    source = open_source(data)
    if not data.source.endswith("jsonl"):
        pytest.skip("the bytes are in the rows")
    _list_results(source)
    decoded.clear()
    (tmp_path / "0.jpg").write_bytes(files.make_image_bytes(size=(55, 44)))
    assert _list_results(source)[0] == (0, (55, 44))
    assert len(decoded) == 2  # this one, and the broken one


@pytest.mark.parametrize("name", ["READER_VERSION", "PIL.__version__"])
def test_other_rules_decode_all(
    data: DataConfig, decoded: list[ImageRef], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _list_results(open_source(data))
    decoded.clear()
    monkeypatch.setattr(f"chip_core.data.verified_images.{name}", "other")
    _list_results(open_source(data))
    assert len(decoded) == ROWS


@pytest.mark.parametrize("content", [b"", b"not a table", None])
def test_a_damaged_file_is_as_none(
    data: DataConfig, decoded: list[ImageRef], cache: Path, content: bytes | None
) -> None:
    first = _list_results(open_source(data))
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-3] if content is None else content)
    decoded.clear()
    assert _list_results(open_source(data)) == first
    assert len(decoded) == ROWS
    decoded.clear()
    _list_results(open_source(data))
    assert len(decoded) == 1  # written again


def test_a_folder_that_cannot_be_written_does_not_matter(
    data: DataConfig, decoded: list[ImageRef], cache: Path
) -> None:
    expected = _list_results(open_source(data))
    shutil.rmtree(cache)
    cache.write_text("a file")
    assert isinstance(next(check_rows(open_source(data))), ValidRow)
    for _ in range(2):
        assert _list_results(open_source(data)) == expected


def test_few_rows_are_not_kept(
    data: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_MIN_ROWS_FOR_THREADS", ROWS + 1)
    _list_results(open_source(data))
    assert not cache.exists()


def test_the_kept_sizes_grow_and_stay(data: DataConfig, decoded: list[ImageRef]) -> None:
    """A check that is left early keeps what it decoded."""
    rows = check_rows(open_source(data))
    next(rows)
    next(rows)
    rows.close()
    decoded.clear()
    _list_results(open_source(data))
    assert len(decoded) == ROWS - 2
