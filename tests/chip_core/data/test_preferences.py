"""Pairs by number, and the first few of a source without a look at the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.config.trial import DataConfig
from chip_core.data.preferences import MAX_PREVIEW_ROWS, load_first_pairs, load_pairs
from chip_core.utils.errors import ConfigError

from . import files


def write_pairs(folder: Path, images: list[str], **changes: object) -> DataConfig:
    """Write a row for each image: `a`, `b` and `c` are pictures, anything else is broken."""
    (folder / "images").mkdir(exist_ok=True)
    for number, name in enumerate("abc"):
        (folder / "images" / name).write_bytes(files.make_image_bytes(colour=50 * number))
    (folder / "images" / "broken").write_bytes(b"what?")
    lines = [files.make_path_row(0, image=f"images/{name}", id=None) for name in images]
    path = files.write_lines(folder / "pairs.jsonl", [b"not JSON", *lines])
    return DataConfig(source=str(path), **changes)


def test_the_first_pairs_show_different_pictures(tmp_path: Path) -> None:
    config = write_pairs(tmp_path, ["broken", "a", "a", "b", "broken", "c"])
    found = load_first_pairs(config, 2)
    # row 0 is not JSON, row 1 is broken, row 3 shows the picture of row 2
    assert [pair.id for pair in found] == ["pairs.jsonl:2", "pairs.jsonl:4"]
    assert len(load_first_pairs(config, 9)) == 3


def test_only_the_first_rows_are_looked_at(tmp_path: Path) -> None:
    assert load_first_pairs(write_pairs(tmp_path, ["broken"] * MAX_PREVIEW_ROWS + ["a"]), 1) == []
    assert (
        load_first_pairs(write_pairs(tmp_path, ["broken", "a", "b"], limit=3), 2)[0].id
        == "pairs.jsonl:2"
    )
    assert len(load_first_pairs(write_pairs(tmp_path, ["a", "b", "c"], limit=2), 2)) == 1


def test_the_embedded_worlds_first_pairs() -> None:
    found = load_first_pairs(DataConfig(), 3)
    assert [pair.id for pair in found] == [pair.id for pair in load_pairs(DataConfig(limit=3))]


def test_a_hub_data_set_that_is_not_here_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.load_dataset", None)
    hub = DataConfig(source="someone/SomePairs")
    with pytest.raises(ConfigError, match="someone/SomePairs is not among this machine's data"):
        load_first_pairs(hub, 3)
    (tmp_path / "cache" / "someone___some_pairs").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be loaded"):  # it is asked for now
        load_first_pairs(hub, 3)


@pytest.mark.parametrize("source", ["shapes", "own"])
def test_a_number_that_is_no_pairs_is_an_index_error(tmp_path: Path, source: str) -> None:
    own = write_pairs(tmp_path, ["a", "b"], on_bad_row="skip")
    pairs = load_pairs(DataConfig(limit=2) if source == "shapes" else own)
    assert len(pairs) == 2
    for number in (2, -1):
        with pytest.raises(IndexError):
            pairs[number]
