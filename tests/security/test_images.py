"""Malformed images and bombs: a reason of one line, and never more memory than the bound."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chip_core.data import image_files
from chip_core.data.image_files import ImageReader, open_image
from chip_core.data.rows import ImageRef, RowError
from chip_core.evaluation.benchmarks.base import Pictures, embedded_picture
from chip_core.representation.described import read_described_images
from chip_core.utils.errors import TrialError, UserError
from orchestrator.report.figures.gallery import read_images

from ..chip_core.data import files
from ..chip_core.data.pictures import chunk
from . import refusals

KIND = "images"
READER = ImageReader(None)
#: 80 MiB of zeros.
LONG = zlib.compress(bytes(80 * 2**20), level=1)


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more])


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + (
        b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, 4)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4


def webp(width: int, height: int) -> bytes:
    body = b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + 8 + 10) + b"WEBPVP8X" + struct.pack("<I", 10) + body


IMAGES: dict[str, bytes] = {
    "nothing": b"",
    "a letter": b"x",
    "text": b"hello, world",
    "a PNG bomb": files.make_huge_png(),
    "a PNG of 2^31 columns": png(2**31 - 1, 2**31 - 1),
    "a PNG without a column": png(0, 5),
    "a PNG of no depth": png(5, 5, chunk(b"IDAT", b""), depth=3),
    "a PNG without data": png(5, 5),
    "a PNG of broken data": png(5, 5, chunk(b"IDAT", b"abc"), chunk(b"IEND", b"")),
    "a PNG over the bound": png(9460, 9460, chunk(b"IDAT", zlib.compress(b"\0"))),
    "a long text in a PNG": png(
        2, 2, chunk(b"zTXt", b"a\0\0" + LONG),
        chunk(b"IDAT", zlib.compress(b"\0" * 14)), chunk(b"IEND", b""),
    ),
    "a long profile in a PNG": png(
        2, 2, chunk(b"iCCP", b"a\0\0" + LONG),
        chunk(b"IDAT", b"no data"), chunk(b"IEND", b""),
    ),
    "a GIF bomb": gif(65535, 65535),
    "a BMP bomb": bmp(2**30, 2**30),
    "a BMP upside down": bmp(2**30, -(2**30)),
    "a TIFF bomb": tiff(2**31, 2**31),
    "a WebP bomb": webp(2**24, 2**24),
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a PDF": b"%PDF-1.4\n%%EOF",
    "a PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch pwned) run\n",
    "a pickle": b"cos\nsystem\n(S'touch pwned'\ntR.",
    "a zip": b"PK\x03\x04" + b"\0" * 26,
    "an icon": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\0\0\0\0\x16\0\0\0",
    "a cut JPEG": files.make_image_bytes(size=(64, 64))[:-40],
    "a JPEG's head": files.make_image_bytes()[:20],
    "a cut PNG": files.make_image_bytes("PNG", (64, 64))[:-40],
    "a cut WebP": files.make_image_bytes("WEBP", (64, 64))[:-10],
    "a cut GIF": files.make_image_bytes("GIF", (64, 64))[:30],
    "a cut TIFF": files.make_image_bytes("TIFF", (64, 64))[:100],
    "a cut BMP": files.make_image_bytes("BMP", (64, 64))[:100],
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_by_hand(name: str) -> None:
    ref = ImageRef(data=IMAGES[name])
    refusals.expect_refusal(KIND, lambda: READER.read(ref), RowError)
    with pytest.raises(RowError):
        READER.size(ref)
    assert not Path("pwned").exists()


def test_a_picture_of_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", 100)
    content = files.make_image_bytes("BMP")  # 12 · 8 · 3 bytes and a header
    (tmp_path / "a.bmp").write_bytes(content)
    refusals.expect_refusal(KIND, lambda: open_image(content), RowError)
    refusals.expect_refusal(KIND, lambda: open_image(tmp_path / "a.bmp"), RowError)


def test_a_film_is_its_first_frame() -> None:
    """Frames are never counted nor decoded: 300 of them are read as one."""
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in range(0, 250, 50)] * 60
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    read = READER.read(ImageRef(data=out.getvalue()))
    assert (read.size, read.getpixel((0, 0))) == ((4, 4), (0, 0, 0))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    keep=st.floats(0.05, 1),
)
def test_by_hypothesis(kind: str, places: list[tuple[float, int]], keep: float) -> None:
    """Whatever was changed of an image, it is read as RGB or told."""
    whole = bytearray(files.make_image_bytes(kind, (40, 30)))
    for share, value in places:
        whole[int(share * len(whole))] = value
    ref = ImageRef(data=bytes(whole[: max(1, int(keep * len(whole)))]))
    try:
        assert READER.read(ref).mode == "RGB"
    except RowError as error:
        refusals.count_refusal(f"{KIND}, generated", str(error))


def read_described_image(folder: Path, name: str) -> object:
    (folder / "set.jsonl").write_text(
        f'{{"image": "{name}", "true": "a", "hallucinated": "b"}}\n' * 2
    )
    return [item.image() for item in read_described_images(str(folder / "set.jsonl"), 2)]


def read_benchmark_image(folder: Path, name: str) -> object:
    return Pictures([folder]).file(name).read()


@pytest.mark.parametrize("read", [read_described_image, read_benchmark_image])
@pytest.mark.parametrize(
    "name", ["../secret.jpg", "link.jpg", "/etc/hostname", "bomb.png", "script.svg", "gone.jpg"]
)
def test_pictures_of_other_files(
    tmp_path: Path, read: Callable[[Path, str], object], name: str
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(files.make_image_bytes())
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "bomb.png").write_bytes(files.make_huge_png())
    (folder / "script.svg").write_bytes(IMAGES["an SVG"])
    refusals.expect_refusal(KIND, lambda: read(folder, name), UserError, TrialError)


@pytest.mark.parametrize("data", [b"", b"x", files.make_huge_png(), "no base64!", "aGVsbG8="])
def test_pictures_within_a_benchmark_s_file(data: bytes | str) -> None:
    refusals.expect_refusal(
        KIND, lambda: embedded_picture("a picture", lambda: data).read(), TrialError
    )


@pytest.mark.parametrize("name", ["a PNG bomb", "text", "a cut JPEG", "a PostScript"])
def test_pictures_of_the_gallery(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[name])
    refusals.expect_refusal(KIND, lambda: read_images([tmp_path / "a.png"]), UserError)
