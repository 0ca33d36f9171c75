"""Every kind of bad row is told with its place, and left out where that is asked for."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from chip_core.config.trial import DataConfig
from chip_core.data import image_files
from chip_core.data.checks import check_rows
from chip_core.data.preferences import load_pairs
from chip_core.data.rows import BadRow
from chip_core.data.source import open_source
from chip_core.utils.errors import TrialError

from . import files


def find_bad_rows(path: Path, **changes: Any) -> list[str]:
    source = open_source(DataConfig(source=str(path), **changes))
    return [str(row) for row in check_rows(source) if isinstance(row, BadRow)]


def make_image_columns(data: bytes | None, path: str | None = "0.jpg") -> dict[str, Any]:
    return {"image": {"bytes": data, "path": path}, "image_path": None}


IN_PARQUET = {
    "no image": (make_image_columns(None, None), "no image"),
    "bytes are null, no file": (make_image_columns(None), "no image '0.jpg' in "),
    "no bytes": (make_image_columns(b""), "the image has no bytes"),
    "not an image": (make_image_columns(b"what?"), "the image is none of JPEG, PNG"),
    "broken JPEG": (
        make_image_columns(files.make_image_bytes(size=(64, 64))[:-40]),
        "the image is broken (image file",
    ),
    "broken PNG": (
        make_image_columns(files.make_image_bytes("PNG", (64, 64))[:-40]),
        "the image is broken (",
    ),
    "huge": (make_image_columns(files.make_huge_png()), "the image has more than 89478485 pixels"),
    "empty": ({"chosen": " \n"}, "chosen is empty"),
    "empty prompt": ({"question": ""}, "prompt is empty"),
    "equal": ({"chosen": "A dog. ", "rejected": "A dog."}, "chosen and rejected are equal"),
    "null byte": ({"rejected": "A\0dog."}, "rejected holds a null byte"),
    "surrogate": ({"chosen": "A \ud800."}, "chosen is not UTF-8: a lone surrogate at 2"),
    "two images": ({"question": "<image><image>?"}, "the prompt names 2 images"),
    "not text": ({"chosen": 5}, "chosen is of type int, not text"),
    "missing": ({"rejected": None}, "no rejected"),
    "not JSON": ({"text": "{"}, "text is not JSON ("),
    "too deep": ({"text": "[" * 100_000}, "text is not JSON ("),
    "no object": ({"text": "[1]"}, "text is not a JSON object"),
}


@pytest.mark.parametrize(("changes", "expected"), IN_PARQUET.values(), ids=IN_PARQUET.keys())
def test_a_bad_row_of_parquet(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    rows = [files.make_rlhf_v_row(0), files.make_rlhf_v_row(1, **changes), files.make_rlhf_v_row(2)]
    path = files.write_parquet(tmp_path / "a.parquet", rows)
    (told,) = find_bad_rows(path)
    assert told.startswith(f"{path} row 1: ")
    assert expected in told


IN_LINES: dict[str, tuple[Any, str]] = {
    "not UTF-8": (b'{"image": "\xff"}', "not UTF-8 at byte 11 of the line"),
    "not JSON": (b"{", "not JSON ("),
    "deep": (b"[" * 100_000, "not JSON ("),
    "no object": (b"[1]", "not a JSON object"),
    "missing": ({"rejected": None}, "no rejected"),
    "a type": ({"chosen": ["A dog."]}, "chosen is of type list, not text"),
    "an id's encoding": ({"id": "\ud800"}, "id is not UTF-8: a lone surrogate at 0"),
    "an id's type": ({"id": [1]}, "id is of type list, not text or a whole number"),
    "an image's type": ({"image": 5}, "image is of type int, not bytes, a path or"),
    "two images": ({"image": ["images/0.jpg", "images/1.jpg"]}, "image holds 2 images"),
    "no image": ({"image": ""}, "no image"),
    "no such image": ({"image": "images/9.jpg"}, "no image 'images/9.jpg' in "),
    "a folder": ({"image": "images"}, "no image 'images' in "),
    "upwards": ({"image": "../secret.jpg"}, "image path '../secret.jpg' leaves its folder"),
    "upwards inside": ({"image": "images/../../secret.jpg"}, "leaves its folder"),
    "absolute": ({"image": "/etc/hostname"}, "image path '/etc/hostname' leaves its folder"),
    "symlink": ({"image": "images/link.jpg"}, "image path 'images/link.jpg' leaves its folder"),
    "null byte": ({"image": "images/\0.jpg"}, "is not a path ("),
    "long": ({"image": "x" * 10_000}, "is not a path ("),
    "no text of a path": ({"image": "\ud800.jpg"}, "is not a path ("),
    "URL": ({"image": "https://example.org/a.jpg"}, "is a URL: download the images"),
    "rejected image": ({"rejected_image": "images/9.jpg"}, "rejected image: no image 'images/9"),
}


@pytest.mark.parametrize(("changes", "expected"), IN_LINES.values(), ids=IN_LINES.keys())
def test_a_bad_json_line_is_reported(tmp_path: Path, changes: Any, expected: str) -> None:
    folder = tmp_path / "d"
    files.write_images(folder, 3)
    (tmp_path / "secret.jpg").write_bytes(files.make_image_bytes())
    (folder / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    bad = changes if isinstance(changes, bytes) else files.make_path_row(1, **changes)
    path = files.write_lines(
        folder / "a.jsonl", [b"", files.make_path_row(0), bad, files.make_path_row(2)]
    )
    (told,) = find_bad_rows(path)
    assert told.startswith(f"{path} line 3: ")
    assert expected in told


IN_TRL: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"images": []}, "no image"),
    "two images": ({"images": ["a.jpg", "b.jpg"]}, "images holds 2 images"),
    "system": (
        {
            "prompt": [
                files.make_message("system", "Be brief."),
                files.make_message("user", "What?"),
            ]
        },
        "prompt has messages of system, user: one of user is supported",
    ),
    "turns": (
        {"chosen": [files.make_message("assistant", "A."), files.make_message("user", "B?")]},
        "chosen has messages of assistant, user",
    ),
    "none": ({"chosen": []}, "chosen has messages of none"),
    "missing": ({"chosen": None}, "no chosen"),
    "a type": ({"chosen": 5}, "chosen is of type int, not text or messages"),
    "images": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
        "prompt names 2 images: one image per pair is supported",
    ),
    "an image for an answer": (
        {"chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
        "chosen holds an image and no text",
    ),
    "role": ({"chosen": [{"content": "A."}]}, "chosen holds a message without a role"),
    "content": ({"chosen": [{"role": "assistant"}]}, "chosen holds a message without content"),
    "video": (
        {"prompt": [{"role": "user", "content": [{"type": "video"}]}]},
        "prompt holds a part of type 'video'",
    ),
    "prompts differ": (
        {
            "prompt": None,
            "chosen": [files.make_message("user", "A?"), files.make_message("assistant", "B.")],
            "rejected": [files.make_message("user", "C?"), files.make_message("assistant", "D.")],
        },
        "no prompt, and chosen and rejected do not begin alike",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), IN_TRL.values(), ids=IN_TRL.keys())
def test_a_bad_row_of_messages(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    files.write_images(tmp_path, 1)
    row = {**files.make_trl_row(0), "images": ["images/0.jpg"], **changes}
    path = files.write_lines(tmp_path / "a.jsonl", [row])
    (told,) = find_bad_rows(path, format="trl")
    assert expected in told


def test_text_of_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([files.make_rlaif_v_row(0), files.make_rlaif_v_row(1)])
    broken = pa.array([b"A dog.", b"A \xff dog."]).view(pa.string())
    table = table.set_column(table.schema.get_field_index("rejected"), "rejected", broken)
    parquet.write_table(table, tmp_path / "a.parquet")
    (told,) = find_bad_rows(tmp_path / "a.parquet")
    assert told.endswith("a.parquet row 1: rejected is not UTF-8 at byte 2")
    pairs = load_pairs(DataConfig(source=str(tmp_path / "a.parquet"), on_bad_row="skip"))
    assert [pair.id for pair in pairs] == ["r0"]


def test_a_shard_without_a_column_is_bad_row_by_row(tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "a.parquet", [files.make_rlaif_v_row(0)])
    short = files.make_rlaif_v_row(1)
    del short["rejected"]
    files.write_parquet(tmp_path / "b.parquet", [short])
    assert find_bad_rows(tmp_path) == [f"{tmp_path}/b.parquet row 0: no rejected"]


def test_images_with_null_bytes_come_from_the_folder(tmp_path: Path) -> None:
    files.write_images(tmp_path, 2)
    rows = [
        files.make_rlhf_v_row(0, image={"bytes": None, "path": "0.jpg"}),
        files.make_rlhf_v_row(1, image=None, image_path="1.jpg"),
    ]
    path = files.write_parquet(tmp_path / "a.parquet", rows)
    assert len(find_bad_rows(path)) == 2
    root = str(tmp_path / "images")
    assert find_bad_rows(path, image_root=root) == []
    pairs = load_pairs(DataConfig(source=str(path), image_root=root))
    assert [pair.image.size for pair in pairs] == [files.SIZE] * 2


def test_a_reason_is_one_printable_line(tmp_path: Path) -> None:
    rows = [files.make_trl_row(0, chosen=[files.make_message("\x1b[31m\nred" + 500 * "d", "A.")])]
    path = files.write_lines(tmp_path / "a.jsonl", [{**rows[0], "images": ["a.jpg"]}])
    (told,) = find_bad_rows(path, format="trl")
    assert told.isprintable()
    assert len(told) < len(str(path)) + 400


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    out = io.BytesIO()
    kind = "TIFF" if mode in ("CMYK", "YCbCr", "F", "PA") else "PNG"
    Image.new(mode, (3, 2)).save(out, kind)
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(0, **make_image_columns(out.getvalue()))]
    )
    assert find_bad_rows(path) == []
    (pair,) = load_pairs(DataConfig(source=str(path)))
    assert (pair.image.mode, pair.image.size) == ("RGB", (3, 2))


def test_sixteen_bits_keep_their_greys(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("I;16", (3, 2), 128 * 257).save(out, "PNG")
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(0, **make_image_columns(out.getvalue()))]
    )
    assert load_pairs(DataConfig(source=str(path)))[0].image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("mode", "pixels", "greys"),
    [
        ("I;16B", [0x8080, 0xFFFF], [128, 255]),  # the most significant byte first
        ("I", [200, 100], [200, 100]),  # what 8 bits hold stays
        ("I", [0x8080, 0xFFFF], [128, 255]),
        ("I", [10**8, 2 * 10**8], [127, 255]),  # 127.5, cut
        ("I", [-5, 255], [0, 255]),
        ("F", [0.5, 1.0], [127, 255]),
        ("F", [100.0, 200.0], [100, 200]),
        ("F", [0.0, 0.0], [0, 0]),
    ],
)
def test_wide_greys_are_scaled_and_not_cut(
    tmp_path: Path, mode: str, pixels: list[float], greys: list[int]
) -> None:
    kinds = {"I;16B": ">H", "I": "<i", "F": "<f"}
    data = b"".join(struct.pack(kinds[mode], pixel) for pixel in pixels)
    out = io.BytesIO()
    Image.frombytes(mode, (2, 1), data).save(out, "TIFF")
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(0, **make_image_columns(out.getvalue()))]
    )
    read = load_pairs(DataConfig(source=str(path)))[0].image
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(grey, grey, grey) for grey in greys]


def test_a_pixel_that_is_no_number_is_told(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.new("F", (3, 2), float("inf")).save(out, "TIFF")
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlhf_v_row(0, **make_image_columns(out.getvalue()))]
    )
    (told,) = find_bad_rows(path)
    assert "the image is broken (a pixel is not a finite number)" in told


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_broken_bytes_never_crash(tmp_path: Path, kind: str) -> None:
    whole = files.make_image_bytes(kind, (40, 30))
    draw = random.Random(0)
    rows = []
    for index in range(60):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        rows.append(
            files.make_rlhf_v_row(
                index, **make_image_columns(bytes(data[: draw.randint(1, len(data))]))
            )
        )
    path = files.write_parquet(tmp_path / "a.parquet", rows)
    pairs = load_pairs(DataConfig(source=str(path), on_bad_row="skip"))
    assert len(pairs) + len(pairs.skipped) == 60
    for pair in pairs:  # what was checked can be read
        assert pair.image.mode == "RGB"


def test_an_image_over_the_bound_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 8 * 12 - 1)
    path = files.write_parquet(tmp_path / "a.parquet", [files.make_rlhf_v_row(0)])
    assert find_bad_rows(path) == [f"{path} row 0: the image has 12 x 8 pixels, more than 95"]


def test_parquet_cut_short_is_told(tmp_path: Path) -> None:
    path = files.write_parquet(tmp_path / "a.parquet", [files.make_rlhf_v_row(0)])
    whole = path.read_bytes()
    at = whole.index(b"JFIF")
    path.write_bytes(whole[: at - 60] + b"\0" * 40 + whole[at - 20 :])
    with pytest.raises(TrialError, match="data.source: .*a.parquet (is damaged|cannot be read)"):
        load_pairs(DataConfig(source=str(path)))


def test_bad_rows_fail_with_the_first_ten_and_the_count(tmp_path: Path) -> None:
    rows = [files.make_rlhf_v_row(index, chosen="") for index in range(12)]
    path = files.write_parquet(tmp_path / "a.parquet", [files.make_rlhf_v_row(99), *rows])
    with pytest.raises(TrialError) as failed:
        load_pairs(DataConfig(source=str(path)))
    (reason,) = str(failed.value).splitlines()
    assert reason.startswith(f"12 of 13 rows are bad: {path} row 1: chosen is empty; {path} row 2")
    assert f"{path} row 10: chosen is empty; and 2 more: fix them, or" in reason
    assert "row 11" not in reason


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [files.make_rlhf_v_row(0), files.make_rlhf_v_row(1, chosen=""), files.make_rlhf_v_row(2)]
    path = files.write_parquet(tmp_path / "a.parquet", rows)
    told: list[tuple[int, int]] = []
    pairs = load_pairs(
        DataConfig(source=str(path), on_bad_row="skip"), lambda *done: told.append(done)
    )
    assert [pair.id for pair in pairs] == ["0", "2"]
    assert [str(row) for row in pairs.skipped] == [f"{path} row 1: chosen is empty"]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_row_that_changed_under_way_is_told(tmp_path: Path) -> None:
    files.write_images(tmp_path, 1)
    path = files.write_lines(tmp_path / "a.jsonl", [files.make_path_row(0)])
    pairs = load_pairs(DataConfig(source=str(path)))
    (tmp_path / "images" / "0.jpg").unlink()
    with pytest.raises(TrialError, match="line 1: no image .*: it changed since training began"):
        pairs[0]
