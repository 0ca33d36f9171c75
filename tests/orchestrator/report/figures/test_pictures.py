"""One file is one picture, whoever reads it: training, benchmarks, galleries, sheets, reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chip_core.config.trial import DataConfig, Transparency
from chip_core.data.preferences import load_first_pairs, load_pairs
from chip_core.data.rejected_images.images import to_rgb_image
from chip_core.data.source import SourceRow, open_source
from chip_core.evaluation.benchmarks.base import Pictures, embedded_picture
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.task import Item, Picture
from chip_core.representation.described import read_described_images
from orchestrator.human_eval.sheet import _to_data_uri
from orchestrator.report.figures.gallery import read_images
from orchestrator.report.figures.thumbnails import encode_image

from ....chip_core.data import files, pictures

#: Files in which readers differ that are not one: name -> content, its pixels on white.
FILES: dict[str, tuple[bytes, pictures.Pixels]] = {
    **{name: (case.content, case.white) for name, case in pictures.TRANSPARENT.items()},
    **{name: (content, pictures.grey(*row)) for name, (content, row) in pictures.GREY.items()},
}


def _make_rotated_png() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    return pictures.encode(pictures.row("RGB", [pictures.RED, pictures.OWN]), "PNG", exif=exif)


FILES["PNG, upside down"] = (_make_rotated_png(), [pictures.OWN, pictures.RED])


def _write_pairs(folder: Path, path: Path, **data: Any) -> DataConfig:
    texts = {"question": "What?", "chosen": "One.", "rejected": "Two."}
    named = {**texts, "image": path.name, "rejected_image": path.name}
    lines = files.write_lines(folder / "rows.jsonl", [named])
    return DataConfig(source=str(lines), **data)


def read_training_image(folder: Path, path: Path) -> Image.Image:
    return load_pairs(_write_pairs(folder, path))[0].image


def read_given_rejected_image(folder: Path, path: Path) -> Image.Image | None:
    return load_pairs(_write_pairs(folder, path))[0].rejected_image


def read_embedded_training_image(folder: Path, path: Path) -> Image.Image:
    row = files.make_rlaif_v_row(0, image={"bytes": path.read_bytes(), "path": None})
    table = files.write_parquet(folder / "rows.parquet", [row])
    return load_pairs(DataConfig(source=str(table)))[0].image


def read_study_gallery_image(folder: Path, path: Path) -> Image.Image:
    return load_first_pairs(_write_pairs(folder, path), 1)[0].image


def read_overlap_check_image(folder: Path, path: Path) -> Image.Image:
    (row,) = (row for _, row in open_source(_write_pairs(folder, path, transparency="drop")).scan())
    assert isinstance(row, SourceRow)
    return row.images.read_small(row.image)


def read_benchmark_image(folder: Path, path: Path) -> Image.Image:
    return Pictures([folder]).file(path.name).read()


def read_embedded_benchmark_image(folder: Path, path: Path) -> Image.Image:
    return embedded_picture("a picture", path.read_bytes).read()


def read_base64_benchmark_image(folder: Path, path: Path) -> Image.Image:
    return embedded_picture(
        "a picture", lambda: base64.b64encode(path.read_bytes()).decode()
    ).read()


def read_gallery_image(folder: Path, path: Path) -> Image.Image:
    return to_rgb_image(read_images([path])[0].image)


def read_representation_image(folder: Path, path: Path) -> Image.Image:
    line = {"image": path.name, "true": "a", "hallucinated": "b"}
    return read_described_images(str(files.write_lines(folder / "set.jsonl", [line] * 2)), 2)[
        0
    ].image()


def read_report_thumbnail(folder: Path, path: Path) -> Image.Image:
    kind, content = encode_image(read_benchmark_image(folder, path))
    assert kind == "image/png"  # it is small: nothing is lost
    return Image.open(io.BytesIO(content))


def read_sheet_image(folder: Path, path: Path) -> Image.Image:
    mark, content = _to_data_uri(read_benchmark_image(folder, path)).split(",")
    assert mark == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


READERS: list[Callable[[Path, Path], Image.Image | None]] = [
    read_training_image,
    read_given_rejected_image,
    read_embedded_training_image,
    read_study_gallery_image,
    read_overlap_check_image,
    read_benchmark_image,
    read_embedded_benchmark_image,
    read_base64_benchmark_image,
    read_gallery_image,
    read_representation_image,
    read_report_thumbnail,
    read_sheet_image,
]


@pytest.fixture(autouse=True)
def _private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHIP_ABLATE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", FILES)
def test_every_reader_sees_the_same(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    path = tmp_path / "picture.bin"  # what it is, its content says
    path.write_bytes(content)
    for read in READERS:
        image = read(tmp_path, path)
        assert image is not None
        assert image.mode == "RGB", read.__name__
        assert np.array_equal(np.asarray(image)[0], np.array(expected)), read.__name__


@pytest.mark.parametrize("name", pictures.TRANSPARENT)
def test_dropped_transparency_is_a_matter_of_the_training_data(name: str, tmp_path: Path) -> None:
    case = pictures.TRANSPARENT[name]
    path = tmp_path / "picture.bin"
    path.write_bytes(case.content)
    choices: list[tuple[Transparency, pictures.Pixels]] = [
        ("white", case.white),
        ("drop", case.drop),
    ]
    for transparency, expected in choices:
        pair = load_pairs(_write_pairs(tmp_path, path, transparency=transparency))[0]
        for image in (pair.image, pair.rejected_image):
            assert image is not None
            assert np.array_equal(np.asarray(image)[0], np.array(expected))


def test_a_picture_that_a_plug_in_makes_is_shown_as_one_that_is_read() -> None:
    """Whatever mode it has: the model, the report and the sheet see it on white."""
    half = pictures.row("RGBA", [(255, 0, 0, 128)])
    shown: list[Image.Image] = []

    class Processor:
        tokenizer = SimpleNamespace(added_tokens_decoder={}, all_special_tokens=[])

        def apply_chat_template(self, *_: object, **__: object) -> str:
            return "?"

        def __call__(self, images: list[list[Image.Image]], **_: object) -> dict[str, Any]:
            shown.extend(images[0])
            raise InterruptedError  # seen enough

    item = Item(id="a", prompt="?", pictures=(Picture(key="a", read=lambda: half),))
    with pytest.raises(InterruptedError):
        Encoder(Processor()).encode([item])
    shown += [Image.open(io.BytesIO(encode_image(half)[1]))]
    shown += [Image.open(io.BytesIO(base64.b64decode(_to_data_uri(half).split(",")[1])))]
    assert [image.getpixel((0, 0)) for image in shown] == [pictures.HALF_RED] * 3
