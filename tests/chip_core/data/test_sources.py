"""Formats, shards, ids, laziness, identity."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from chip_core import data
from chip_core.config.trial import DataConfig
from chip_core.data.checks import ValidRow, check_rows
from chip_core.data.files import get_cache_folder
from chip_core.data.image_files import ImageReader
from chip_core.data.preferences import load_pairs
from chip_core.data.source import DataSource, open_source
from chip_core.data.tables import HubTable
from chip_core.utils.errors import ConfigError, TrialError

from . import files


def make_config(source: Path | str, **changes: Any) -> DataConfig:
    return DataConfig(source=str(source), **changes)


def open_rows(source: Path | str, **changes: Any) -> DataSource:
    return open_source(make_config(source, **changes))


def test_rlhf_v(tmp_path: Path) -> None:
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(index) for index in range(3)]
    )
    assert open_rows(path).format.name == "rlhf-v"
    pairs = load_pairs(make_config(path))
    assert [pair.id for pair in pairs] == ["0", "1", "2"]
    pair = pairs[1]
    assert pair.prompt == "What is in picture 1?"
    assert (pair.chosen, pair.rejected) == (
        "A red ball number 1.",
        "A red ball number 1 and a dog.",
    )
    assert (pair.image.mode, pair.image.size) == ("RGB", files.SIZE)
    assert pair.rejected_image is None


def test_rlaif_v(tmp_path: Path) -> None:
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlaif_v_row(index) for index in range(2)]
    )
    assert open_rows(path).format.name == "rlaif-v"
    assert [pair.id for pair in load_pairs(make_config(path))] == ["r0", "r1"]


def test_trl_as_messages_in_parquet(tmp_path: Path) -> None:
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_trl_row(0), files.make_trl_row(1)]
    )
    assert open_rows(path).format.name == "trl"
    pairs = load_pairs(make_config(path))
    assert pairs[1].id == "a.parquet:1"
    assert pairs[1].prompt == "What is in picture 1?"
    assert pairs[1].rejected == "A red ball and a dog."


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prompt": "What is in picture 0?"},
        {"prompt": "<image>What is in picture 0?"},
        {"prompt": [{"role": "user", "content": "What is in picture 0?"}]},
        {"chosen": "A red ball.", "rejected": "A red ball and a dog."},
        {"images": None, "image": "images/0.jpg"},
        {
            "prompt": None,
            "chosen": [
                files.make_message("user", "What is in picture 0?", 1),
                files.make_message("assistant", "A red ball."),
            ],
            "rejected": [
                files.make_message("user", "What is in picture 0?", 1),
                files.make_message("assistant", "A red ball and a dog."),
            ],
        },
    ],
)
def test_trl_as_json_lines(tmp_path: Path, change: dict[str, Any]) -> None:
    files.write_images(tmp_path, 1)
    row = {**files.make_trl_row(0), "images": ["images/0.jpg"], **change}
    row = {name: value for name, value in row.items() if value is not None}
    path = files.write_lines(tmp_path / "a.jsonl", [row])
    (pair,) = load_pairs(make_config(path, format="trl"))
    assert (pair.prompt, pair.chosen) == ("What is in picture 0?", "A red ball.")


def test_json_lines_with_a_rejected_image(tmp_path: Path) -> None:
    files.write_images(tmp_path, 3)
    rows = [
        files.make_path_row(0, rejected_image="images/2.jpg"),
        files.make_path_row(1, rejected_images=["images/2.jpg"]),
        files.make_path_row(2),
    ]
    path = files.write_lines(tmp_path / "a.jsonl", rows)
    assert open_rows(path).format.name == "jsonl"
    pairs = load_pairs(make_config(path))
    assert [pair.id for pair in pairs] == ["pair-0", "pair-1", "pair-2"]
    assert pairs[0].prompt == "What is it?"  # the mark of the image is the template's to put
    assert [pair.rejected_image is None for pair in pairs] == [False, False, True]


@pytest.mark.parametrize("empty", ["", [], None, {"bytes": None, "path": None}])
def test_an_empty_cell_gives_no_rejected_image(tmp_path: Path, empty: Any) -> None:
    files.write_images(tmp_path, 1)
    path = files.write_lines(tmp_path / "a.jsonl", [files.make_path_row(0, rejected_image=empty)])
    assert load_pairs(make_config(path))[0].rejected_image is None
    with pytest.raises(TrialError, match="rejected image: the row has none"):
        load_pairs(make_config(path), rejected_images=True)


def test_columns_of_views(tmp_path: Path) -> None:
    """Arrow's newer layout of texts and bytes, which some writers use."""
    row = files.make_rlaif_v_row(0)
    texts = {name: pa.array([row[name]], pa.string_view()) for name in ("question", "chosen")}
    data = pa.array([row["image"]["bytes"]], pa.binary_view())
    table = pa.table({**texts, "rejected": pa.array([row["rejected"]]), "image": data})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert open_rows(tmp_path / "a.parquet").format.name == "rlaif-v"
    (pair,) = load_pairs(make_config(tmp_path / "a.parquet"))
    assert (pair.prompt, pair.chosen) == (row["question"], row["chosen"])
    paths = table.set_column(3, "image", pa.array(["images/0.jpg"], pa.string_view()))
    parquet.write_table(paths, tmp_path / "b.parquet")
    assert open_rows(tmp_path / "b.parquet").format.name == "jsonl"


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_parquet(tmp_path / "a.parquet", [files.make_rlhf_v_row(0)])
    (tmp_path / "file").touch()
    monkeypatch.setenv("CHIP_ABLATE_CACHE", str(tmp_path / "file"))
    pairs = load_pairs(make_config(path))
    with pytest.raises(TrialError, match="file/data cannot be written .*: set CHIP_ABLATE_CACHE"):
        pairs[0]


def test_copies_lie_in_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHIP_ABLATE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert get_cache_folder() == Path("/somewhere/chip-ablate")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert get_cache_folder() == Path.home() / ".cache" / "chip-ablate"


def test_the_format_can_be_said(tmp_path: Path) -> None:
    path = files.write_parquet(tmp_path / "a.parquet", [files.make_rlaif_v_row(0)])
    assert open_rows(path, format="jsonl").format.name == "jsonl"
    assert load_pairs(make_config(path, format="jsonl"))[0].prompt == "What is in picture 0?"


def test_columns_that_fit_nothing_are_told(tmp_path: Path) -> None:
    path = files.write_lines(tmp_path / "a.jsonl", [{"picture": "x", "best": "y"}])
    with pytest.raises(
        ConfigError, match="the columns picture, best fit no format .*rlhf-v: image"
    ):
        open_rows(path)
    with pytest.raises(TrialError, match="data.source: the columns picture, best fit"):
        load_pairs(make_config(path))


def test_shards_a_folder_a_glob_and_a_limit(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [files.make_rlhf_v_row(10 * shard + index, idx=None) for index in range(20)]
        files.write_parquet(tmp_path / "d" / f"train-{shard}.parquet", rows, row_group_size=7)
    files.write_parquet(tmp_path / "d" / "test.parquet", [files.make_rlhf_v_row(99)])
    assert len(load_pairs(make_config(tmp_path / "d"))) == 41
    trained = load_pairs(make_config(tmp_path / "d", split="train"))
    assert [pair.id for pair in trained][18:22] == [
        "train-0.parquet:18",
        "train-0.parquet:19",
        "train-1.parquet:0",
        "train-1.parquet:1",
    ]
    assert trained[39].prompt == "What is in picture 29?"  # row 19 of the second shard
    assert len(load_pairs(make_config(tmp_path / "d" / "train-*.parquet"))) == 40
    assert len(load_pairs(make_config(tmp_path / "d", split="train", limit=23))) == 23


def test_an_id_that_stands_twice_is_made_another(tmp_path: Path) -> None:
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(5), files.make_rlhf_v_row(5)]
    )
    assert [pair.id for pair in load_pairs(make_config(path))] == ["5", "5@1"]


def test_rows_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(index) for index in range(50)]
    )
    pairs = load_pairs(make_config(path))
    read: list[object] = []
    decode = ImageReader.read

    def noted(self: ImageReader, ref: Any) -> Image.Image:
        read.append(ref)
        return decode(self, ref)

    monkeypatch.setattr(ImageReader, "read", noted)
    assert len(pairs) == 50
    assert pairs[41].id == "41"
    assert pairs[3].id == "3"
    assert len(read) == 2
    (copy,) = (tmp_path / "cache" / "data").iterdir()
    assert copy.suffix == ".arrow"  # and the next process takes it as it is


def test_a_whole_file_is_never_in_memory(tmp_path: Path) -> None:
    # 200 rows of 100 kB in one row group, 20 MB unpacked; Arrow never holds a fourth of it.
    noise = [bytes((index + place) % 251 for place in range(1000)) * 100 for index in range(8)]
    rows = [
        files.make_rlaif_v_row(index, image={"bytes": noise[index % 8], "path": "x"})
        for index in range(200)
    ]
    path = files.write_parquet(
        tmp_path / "a.parquet", rows, use_dictionary=False, write_batch_size=4
    )
    rows.clear()
    source = open_rows(path)
    before = pa.total_allocated_bytes()
    most = 0
    for index, row in source.scan():
        assert not isinstance(row, Exception)
        most = max(most, pa.total_allocated_bytes() - before)
        assert row.index == index
    assert source.row(150).texts.id == "r150"
    most = max(most, pa.total_allocated_bytes() - before)
    assert most < 5_000_000


def test_an_orientation_is_followed(tmp_path: Path) -> None:
    files.write_images(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", files.SIZE).save(tmp_path / "images" / "0.jpg", exif=exif)
    path = files.write_lines(tmp_path / "a.jsonl", [files.make_path_row(0)])
    turned = (files.SIZE[1], files.SIZE[0])
    assert load_pairs(make_config(path))[0].image.size == turned
    (checked,) = check_rows(open_rows(path))
    assert isinstance(checked, ValidRow)
    assert checked.size == turned


@pytest.mark.parametrize(
    ("source", "changes", "expected"),
    [
        ("none.jsonl", {}, "no file none.jsonl: name a file, a folder, a glob"),
        ("none-*.parquet", {}, "no file none-*.parquet"),
        ("/none/at/all", {}, "no file /none/at/all"),
        ("d", {}, "no *.parquet or *.jsonl in d"),
        ("a.jsonl", {"split": "train"}, "split 'train': only a folder or a hub name has splits"),
        ("e", {"split": "train"}, "no *.parquet or *.jsonl of the split 'train' in e"),
        ("a.csv", {}, "a.csv is neither .parquet nor .jsonl: convert it"),
        ("mixed", {}, "mixed holds parquet and JSON lines"),
        ("bad.parquet", {}, "bad.parquet cannot be read as parquet"),
        ("empty.jsonl", {}, "empty.jsonl has no rows"),
        ("a.jsonl", {"image_root": "nowhere"}, "no folder nowhere"),
        ("a.jsonl", {}, None),
        ("owner/name", {}, None),  # looked up when it is loaded
        ("shapes", {}, None),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    tmp_path: Path, source: str, changes: dict[str, Any], expected: str | None
) -> None:
    files.write_lines(tmp_path / "a.jsonl", [files.make_path_row(0)])
    files.write_lines(tmp_path / "e" / "test.jsonl", [files.make_path_row(0)])
    files.write_lines(tmp_path / "mixed" / "a.jsonl", [files.make_path_row(0)])
    files.write_parquet(tmp_path / "mixed" / "a.parquet", [files.make_rlhf_v_row(0)])
    (tmp_path / "d").mkdir()
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "empty.jsonl").write_text("\n")
    found = data.find_source_problem(make_config(source, **changes))
    assert found is None if expected is None else expected in (found or "")


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    for place in ("one", "two"):
        files.write_images(tmp_path / place, 2)
        files.write_lines(
            tmp_path / place / "a.jsonl", [files.make_path_row(0), files.make_path_row(1)]
        )
    one = data.identity(make_config(tmp_path / "one"))
    assert one == data.identity(make_config(tmp_path / "two" / "a.jsonl", format="jsonl"))
    assert str(tmp_path) not in json.dumps(one)
    # An image that a row names by path counts with its content,
    (tmp_path / "two" / "images" / "1.jpg").write_bytes(files.make_image_bytes(colour=77))
    changed = data.identity(make_config(tmp_path / "two"))
    assert changed["files"] == one["files"]
    assert changed["images"] != one["images"]
    # but not one beyond the limit.
    limited = [data.identity(make_config(tmp_path / place, limit=1)) for place in ("one", "two")]
    assert limited[0] == limited[1]
    files.write_lines(
        tmp_path / "two" / "a.jsonl",
        [files.make_path_row(0), files.make_path_row(1, chosen="A dog.")],
    )
    assert data.identity(make_config(tmp_path / "two"))["files"] != one["files"]


@pytest.mark.parametrize(("data_of_second", "counted"), [(b"x", False), (None, True)])
def test_only_images_named_by_path_are_looked_for(
    tmp_path: Path, data_of_second: bytes | None, counted: bool
) -> None:
    files.write_images(tmp_path, 1)
    rows = [
        files.make_rlhf_v_row(0),
        files.make_rlhf_v_row(1, image={"bytes": data_of_second, "path": "images/0.jpg"}),
    ]
    path = files.write_parquet(tmp_path / "a.parquet", rows, row_group_size=1)
    columns = ("image", "image_path", "rejected_image")
    assert open_rows(path).tables[0].has_no_image_paths(columns) is not counted
    assert ("images" in data.identity(make_config(path))) is counted


def test_bad_rows_have_an_identity_too(tmp_path: Path) -> None:
    """They are told when the rows are checked, not when a study is planned."""
    rows = [
        b"not JSON",
        files.make_path_row(0, image="../up.jpg"),
        files.make_path_row(1, image=5),
        files.make_path_row(2),
    ]
    path = files.write_lines(tmp_path / "a.jsonl", rows)
    absent = data.identity(make_config(path))
    files.write_images(tmp_path, 3)
    assert data.identity(make_config(path))["images"] != absent["images"]
    assert data.identity(make_config(path))["files"] == absent["files"]


def test_the_identity_of_shapes_and_of_a_hub_name() -> None:
    assert data.identity(DataConfig()) == {"source": "shapes"}
    hub = data.identity(make_config("owner/name", revision="abc"))
    assert hub == {"hub": "owner/name", "revision": "abc", "format": "auto"}


@pytest.mark.usefixtures("reachable_hub")
def test_a_hub_data_set_is_read_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            **{name: datasets.Value("string") for name in ("question", "chosen", "rejected")},
        }
    )
    rows = [{name: files.make_rlaif_v_row(index)[name] for name in features} for index in range(3)]
    made = datasets.Dataset.from_list(rows, features=features)
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        asked.update(name=name, **options)
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pairs = load_pairs(make_config("owner/name"))
    assert asked == {"name": "owner/name", "split": "train", "revision": None}
    assert pairs[2].id == "owner/name:2"
    assert pairs[2].image.size == files.SIZE
    assert HubTable(made, "x").kinds["image"] == "struct"


@pytest.fixture
def reachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that answers."""
    monkeypatch.setattr("chip_core.data.source.find_hub_error", lambda *asked: None)


@pytest.mark.usefixtures("reachable_hub")
def test_a_hub_name_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, **options: Any) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        TrialError, match=r"owner/name, split train, cannot be loaded \(no network\)$"
    ):
        load_pairs(make_config("owner/name"))


def test_a_hub_that_cannot_be_reached_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is between here and there; nobody tries again, and nobody else says a word."""
    import datasets

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # for the libraries that are not asked
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _raise_no_network)
    monkeypatch.setattr(datasets, "load_dataset", _fail_if_called)
    with pytest.raises(
        ConfigError,
        match=r"^nosuch/name: the hub cannot be reached \(no route\), and no copy of it is among "
        "this machine's data sets: check the name and the network, or name a file$",
    ):
        open_rows("nosuch/name")
    assert capfd.readouterr() == ("", "")


def test_a_copy_is_read_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "owner___name").mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _raise_no_network)
    asked: list[bool] = []

    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        return datasets.Dataset.from_list([files.make_rlaif_v_row(0)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = datasets.config.HF_HUB_OFFLINE
    assert len(open_rows("owner/name")) == 1
    assert asked == [True]
    assert datasets.config.HF_HUB_OFFLINE is before


def _raise_no_network(*asked: object, **options: object) -> None:
    raise ConnectionError("no route")


def _fail_if_called(*asked: object, **options: object) -> None:
    raise AssertionError("the hub is asked")


DATED = {
    "image": "images/0.jpg",
    "question": "2024-01-01",
    "chosen": "2024-01-01T10:00:00",
    "rejected": "2024-01-02",
}
DATED_MESSAGES = {
    "images": ["images/0.jpg"],
    "prompt": [{"role": "user", "content": "2024-01-01"}],
    "chosen": [{"role": "assistant", "content": "2024-01-01T10:00:00"}],
    "rejected": [{"role": "assistant", "content": "2024-01-02"}],
}


@pytest.mark.usefixtures("reachable_hub")
@pytest.mark.parametrize("row", [DATED, DATED_MESSAGES])
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_texts_of_a_hub_that_look_like_dates_stay_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], suffix: str
) -> None:
    """`datasets` (5.2) makes times of them, and its `features` does not give the texts back."""
    import datasets

    rows = [row, row]
    text = "\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows)
    (tmp_path / f"train.{suffix}").write_text(text)
    files.write_images(tmp_path, 1)
    whole, builder = datasets.load_dataset, datasets.load_dataset_builder
    options = {"data_files": {"train": f"*.{suffix}"}, "cache_dir": str(tmp_path / "cache")}
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, split, revision: whole(str(tmp_path), split=split, **options),
    )
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda name, revision: builder(str(tmp_path), **options)
    )
    made = datasets.load_dataset("owner/name", split="train", revision=None)
    assert HubTable(made, "x").has_times  # or there is nothing to mend any more
    pairs = load_pairs(make_config("owner/name", image_root=str(tmp_path)))
    assert (pairs[1].prompt, *pairs.response_texts(1)) == (
        "2024-01-01",
        "2024-01-01T10:00:00",
        "2024-01-02",
    )
    assert pairs[1].id == "owner/name:1"


@pytest.mark.usefixtures("reachable_hub")
def test_times_of_a_hub_in_parquet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    made = datasets.Dataset.from_list([files.make_rlaif_v_row(0, chosen=datetime(2024, 1, 1))])
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": ["a.parquet"]}))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: made)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, **options: builder)
    with pytest.raises(TrialError, match="owner/name row 0: chosen is a date or a time, not text"):
        load_pairs(make_config("owner/name"))
