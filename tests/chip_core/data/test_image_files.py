"""Images as rows name them: what cannot be had is a reason, what is odd about them is no harm."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from chip_core.data.image_files import ImageReader
from chip_core.data.rows import ImageRef, RowError

from . import files


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (ImageRef(), "no image"),
        (ImageRef(path="a.jpg"), "image 'a.jpg' is a path: say under which folder by data.image_r"),
        (ImageRef(path="s3://b/a.jpg"), "is a URL: fetch the images, then name paths"),
        (ImageRef(data=b"<svg/>"), "the image is none of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
    ],
)
def test_what_cannot_be_read_is_told(ref: ImageRef, expected: str) -> None:
    for asked in (ImageReader(None).size, ImageReader(None).read):
        with pytest.raises(RowError, match=expected):
            asked(ref)


def test_broken_exif_says_nothing_of_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", files.SIZE, "red").save(out, "JPEG", exif=exif)
    # the header of the EXIF's table, which names its byte order, overwritten
    broken = (
        out.getvalue().replace(b"Exif\0\0MM", b"Exif\0\0??").replace(b"Exif\0\0II", b"Exif\0\0??")
    )
    assert broken != out.getvalue()
    ref = ImageRef(data=broken)
    assert ImageReader(None).size(ref) == files.SIZE
    assert ImageReader(None).read(ref).size == files.SIZE


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "MPO"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", files.SIZE, colour) for colour in ("white", "black")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    read = ImageReader(None).read(ImageRef(data=out.getvalue()))
    assert (read.mode, read.getpixel((3, 3))) == ("RGB", (255, 255, 255))


def test_a_path_may_go_through_folders_and_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b.jpg").write_bytes(files.picture())
    assert ImageReader(tmp_path).file("a/../b.jpg") == tmp_path / "b.jpg"
