"""Images as rows name them: what cannot be had is a reason, what is odd about them is no harm."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import convert_to_rgb

from chip_core.config.trial import Transparency
from chip_core.data import image_files
from chip_core.data.image_files import ImageReader, read_image, to_rgb
from chip_core.data.rows import ImageRef, RowError

from . import files, pictures
from .pictures import GREY, OPAQUE, TRANSPARENT


def read_pixels(image: Image.Image) -> pictures.Pixels:
    return [tuple(pixel) for pixel in np.asarray(image)[0].tolist()]


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (ImageRef(), "no image"),
        (ImageRef(path="a.jpg"), "image 'a.jpg' is a path: set its folder with data.image_r"),
        (ImageRef(path="s3://b/a.jpg"), "is a URL: download the images, then use paths"),
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
    (tmp_path / "b.jpg").write_bytes(files.make_image_bytes())
    assert ImageReader(tmp_path).resolve_file("a/../b.jpg") == tmp_path / "b.jpg"


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_seen_on_white_or_as_it_is_stored(name: str) -> None:
    case = TRANSPARENT[name]
    ways: list[tuple[Transparency, pictures.Pixels]] = [("white", case.white), ("drop", case.drop)]
    for transparency, expected in ways:
        read = read_image(case.content, transparency)
        assert (read.mode, read_pixels(read)) == ("RGB", expected)
        # Nothing is left by which transformers, or anyone, would make it transparent once more.
        assert not read.has_transparency_data
        assert read_pixels(Image.fromarray(convert_to_rgb(read, return_numpy=True))) == expected
    assert ImageReader(None).size(ImageRef(data=case.content)) == (len(case.white), 1)


@pytest.mark.parametrize("name", [name for name, case in TRANSPARENT.items() if case.plain])
def test_on_white_is_as_transformers_has_it(name: str) -> None:
    with Image.open(io.BytesIO(TRANSPARENT[name].content)) as opened:
        theirs = convert_to_rgb(opened, return_numpy=True)
    assert np.array_equal(np.asarray(read_image(TRANSPARENT[name].content)), theirs)


@pytest.mark.parametrize("alpha", range(0, 256, 5))
def test_every_alpha_is_blended_as_transformers_does(alpha: int) -> None:
    shades = np.stack([np.arange(256), np.arange(255, -1, -1), np.full(256, 77)], axis=-1)
    image = Image.fromarray(shades[None].astype(np.uint8))
    image.putalpha(alpha)
    theirs = convert_to_rgb(image, return_numpy=True)
    assert np.array_equal(np.asarray(read_image(pictures.encode(image, "PNG"))), theirs)
    # And within one of what is said: (c · a + 255 · (255 - a)) / 255.
    said = (shades * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(theirs[0] - said).max() < 1


@pytest.mark.parametrize("name", OPAQUE)
def test_what_has_no_alpha_is_read_one_way(name: str) -> None:
    content, expected = OPAQUE[name]
    assert read_pixels(read_image(content)) == read_pixels(read_image(content, "drop")) == expected


@pytest.mark.parametrize("name", GREY)
def test_grey_of_many_bits_is_scaled(name: str) -> None:
    content, expected = GREY[name]
    assert read_pixels(read_image(content)) == pictures.grey(*expected)
    assert read_pixels(read_image(content, "drop")) == pictures.grey(*expected)


def test_all_greys_of_16_bits() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    read = np.asarray(read_image(pictures.encode(Image.fromarray(values), "PNG")))
    assert np.array_equal(read[..., 0], values // 257)  # 65535 = 255 · 257


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_pixel_that_is_no_number_is_told(place: int, value: float) -> None:
    row = [0.1, 0.5, 0.9]
    row[place] = value
    content = pictures.tiff(3, struct.pack("<3f", *row), bits=[32], photometric=1, samples=3)
    for asked in (ImageReader(None).size, ImageReader(None).read):
        with pytest.raises(RowError, match="a pixel is not a finite number"):
            asked(ImageRef(data=content))


#: What EXIF's orientations mean: how the stored picture has to be turned to stand upright.
TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.transpose(a, (1, 0, 2)),
    6: lambda a: np.rot90(a, -1),  # clockwise
    7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"),
        ("TIFF", "RGB"), ("TIFF", "RGBA"), ("TIFF", "I;16"), ("TIFF", "F"),
        ("WEBP", "RGB"), ("WEBP", "RGBA"), ("JPEG", "RGB"), ("JPEG", "L"),
    ],
)  # fmt: skip
def test_every_kind_is_turned(kind: str, mode: str, orientation: int) -> None:
    small = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40  # 3 wide, 2 high
    stored = Image.fromarray(small).resize((48, 32), Image.Resampling.NEAREST)
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
    elif mode == "F":
        stored = Image.fromarray(np.asarray(stored).astype(np.float32))
    else:
        stored = stored.convert("RGB" if mode == "P" else mode).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    content = pictures.encode(stored, kind, exif=exif, **options)
    upright = np.asarray(read_image(pictures.encode(stored, kind, **options)))
    expected = TURNED[orientation](upright)
    read = read_image(content)
    assert np.array_equal(np.asarray(read), expected)
    assert ImageReader(None).size(ImageRef(data=content)) == read.size
    assert read.getexif().get(0x0112) is None  # nobody turns it again


def test_the_first_frame_of_an_animation_lies_on_white() -> None:
    frames = [pictures.row("RGBA", [(255, 0, 0, 128), (0, 0, 0, 0)]) for _ in range(2)]
    frames[1].putalpha(255)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        content = pictures.encode(
            frames[0], kind, save_all=True, append_images=frames[1:], **options
        )
        assert read_pixels(read_image(content)) == [pictures.HALF_RED, pictures.WHITE]
    # A GIF has no half: of two palettes with a transparent colour the first counts.
    one, other = pictures.row("P", [0, 1]), pictures.row("P", [1, 1])
    for frame in (one, other):
        frame.putpalette([0, 0, 0, 10, 20, 30])
    for disposal in (1, 2, 3):
        content = pictures.encode(
            one, "GIF", save_all=True, append_images=[other], transparency=0, disposal=disposal
        )
        assert read_pixels(read_image(content)) == [pictures.WHITE, pictures.OWN]


def test_images_in_memory_of_every_mode_become_rgb() -> None:
    quantized = pictures.row("RGBA", [(255, 0, 0, 128)]).quantize(2)  # a palette with alphas
    half = {
        "RGBA": pictures.row("RGBA", [(255, 0, 0, 128)]),
        "RGBa": pictures.row("RGBA", [(255, 0, 0, 128)]).convert("RGBa"),
        "P": quantized,
    }
    for mode, image in half.items():
        assert read_pixels(to_rgb(image)) == [pictures.HALF_RED], mode
        assert read_pixels(to_rgb(image, "drop")) == [pictures.RED], mode
    for mode in ("LA", "La"):
        assert read_pixels(to_rgb(pictures.row("LA", [(0, 128)]).convert(mode))) == [
            (127, 127, 127)
        ]
    signed = pictures.row("I", [-7, 255])  # not of a TIFF that says that it has no sign
    assert read_pixels(to_rgb(signed)) == pictures.grey(0, 255)
    opaque = Image.new("RGB", (2, 1))
    assert to_rgb(opaque) is opaque


def test_the_check_of_rows_decodes_a_jpeg_at_a_part_of_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[tuple[int, int]] = []

    def noted(image: Image.Image, transparency: Transparency) -> Image.Image:
        decoded.append(image.size)
        return to_rgb(image, transparency)

    monkeypatch.setattr(image_files, "to_rgb", noted)
    ref = ImageRef(data=files.make_image_bytes(size=(640, 480)))
    assert ImageReader(None).size(ref) == (640, 480)
    ImageReader(None).read_small(ref)
    assert decoded == [(80, 60), (160, 120)]  # an eighth; a quarter: 64 at least
