"""Read untrusted picture files as the RGB pixels that a model sees.

All pictures are read by `read_image`: training images and given rejected images, benchmarks'
pictures, galleries, reports and representations, so that a file gives the same picture everywhere.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from chip_core.config.trial import Transparency
from chip_core.data.rows import ImageRef, RowError
from chip_core.utils.errors import first_line

#: Pillow's own bound; an image's header is checked before a pixel is decoded.
MAX_PIXELS = 89_478_485
#: Bytes of a stored image; no picture of that many pixels is larger.
MAX_BYTES = 2**28
#: Increased whenever a file gives other pixels; figures on files depend on it.
READER_VERSION = 2
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
#: A PNG's pixel layout in the file -> conversion of one value to what Pillow decodes.
_TRANSPARENCY_DECODERS: Mapping[str, Callable[[int], int]] = {
    "L;2": lambda value: (value & 0x3) * 0x55,
    "L;4": lambda value: (value & 0xF) * 0x11,
    "L": lambda value: value & 0xFF,
    "RGB": lambda value: value & 0xFF,
    "RGB;16B": lambda value: value >> 8,
}


class ImageReader:
    """Read the images of one data file; paths are relative to a folder and stay inside it."""

    def __init__(self, root: Path | None, transparency: Transparency = "white") -> None:
        self._root = None if root is None else root.resolve()
        self._transparency = transparency

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """Return (width, height) of an image that decodes completely, after its EXIF rotation.

        A JPEG is decoded at an eighth of its size: all bytes are read, but few pixels are computed.

        Raises:
            RowError: there is no image, or it is broken, too large or outside the folder.
        """
        with open_image(self._source(ref)) as image:
            width, height = image.size
            image.draft("RGB", (1, 1))
            _decode_rgb(image, "drop")  # only decoded, not used
            is_rotated = _get_orientation(image) in (5, 6, 7, 8)
        return (height, width) if is_rotated else (width, height)

    def read(self, ref: ImageRef) -> Image.Image:
        """Return the image as `read_image` reads it, with the data's transparency setting.

        Raises:
            RowError: as `size`.
        """
        return read_image(self._source(ref), self._transparency)

    def content(self, ref: ImageRef) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            RowError: there is no image, or it is too large, unreadable or outside the folder.
        """
        source = self._source(ref)
        if isinstance(source, bytes):
            return source
        try:
            _check_size(source.stat().st_size)
            return source.read_bytes()
        except OSError as error:
            raise RowError(f"the image cannot be read ({first_line(error)})") from None

    def read_small(self, ref: ImageRef) -> Image.Image:
        """Return the image on white; a JPEG is scaled down, which is faster.

        Raises:
            RowError: as `size`.
        """
        with open_image(self._source(ref)) as image:
            image.draft("RGB", (64, 64))
            return _decode_rgb(image, "white")

    def resolve_file(self, path: str) -> Path:
        """Return the file of a path in a row.

        Raises:
            RowError: it is outside the folder, or there is no such file.
        """
        if "://" in path:
            raise RowError(f"image {path[:80]!r} is a URL: download the images, then use paths")
        if self._root is None:
            raise RowError(f"image {path!r} is a path: set its folder with data.image_root")
        return resolve_inside(self._root, path)

    def _source(self, ref: ImageRef) -> Path | bytes:
        if ref.data is None and ref.path is None:
            raise RowError("no image")
        if ref.data is not None and not ref.data:
            raise RowError("the image has no bytes")
        return self.resolve_file(ref.path or "") if ref.data is None else ref.data


def read_image(source: Path | bytes, transparency: Transparency = "white") -> Image.Image:
    """Return a picture in 8-bit RGB, without any metadata of its file.

    It is rotated by its EXIF orientation; of several frames it is the first; grey of more than 8
    bits is scaled as in `to_eight_bits`.

    Args:
        source: the file, or its bytes.
        transparency: "white": transparent parts are shown on white; "drop": their stored colours
            are used.

    Raises:
        RowError: as `open_image`, or it is broken further on.
    """
    with open_image(source) as image:
        rgb = _decode_rgb(image, transparency)
        copy = rgb.copy() if rgb is image else rgb
    copy.info.clear()  # orientation and transparent colour are already applied
    return copy


def open_image(source: Path | bytes) -> Image.Image:
    """Return an image that is within the bounds and not yet decoded; of several frames the first.

    Raises:
        RowError: its kind is not supported, or it is broken or larger than the bounds.
    """
    try:
        _check_size(source.stat().st_size if isinstance(source, Path) else len(source))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad image is reported as a bad row
            image = Image.open(
                source if isinstance(source, Path) else io.BytesIO(source), formats=_IMAGE_FORMATS
            )
    except RowError:
        raise
    except Image.DecompressionBombError:
        raise RowError(f"the image has more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise RowError(f"the image is none of {', '.join(_IMAGE_FORMATS)}") from None
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise RowError(f"the image cannot be read ({first_line(error)})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise RowError(f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
    return image


def _check_size(size: int) -> None:
    """Raise RowError if an image's file is larger than the bound, in bytes."""
    if size > MAX_BYTES:
        raise RowError(f"the image has {size} bytes, more than {MAX_BYTES}")


def resolve_inside(root: Path, path: str) -> Path:
    """Return the image file that an untrusted path names below a folder.

    Args:
        root: the folder, resolved.
        path: relative to it; neither `..` nor a link may lead out of it.

    Raises:
        RowError: it is outside the folder, or there is no such file.
    """
    try:
        file = (root / path).resolve()
        is_inside = file.is_relative_to(root)
        is_file = is_inside and file.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise RowError(f"image path {path[:80]!r} is not a path ({error})") from None
    if not is_inside:
        raise RowError(f"image path {path!r} leaves its folder {root}")
    if not is_file:
        raise RowError(f"no image {path!r} in {root}")
    return file


def decode(image: Image.Image) -> Image.Image:
    """Decode an open image.

    Raises:
        RowError: it is broken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
        return image
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise RowError(f"the image is broken ({first_line(error)})") from None


def to_rgb(image: Image.Image, transparency: Transparency = "white") -> Image.Image:
    """Return an image of any mode in RGB; an opaque RGB image is returned unchanged.

    Args:
        image: the image, decoded.
        transparency: as in `read_image`.

    Raises:
        ValueError: the mode cannot be converted, or a pixel is not a finite number.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if transparency == "white" and image.has_transparency_data:
        composited = Image.alpha_composite(Image.new("RGBA", image.size, "white"), _to_rgba(image))
        return composited.convert("RGB")
    rgb = to_eight_bits(_unpremultiply(image)).convert("RGB")
    rgb.info.pop("transparency", None)  # else the next reader would apply it
    return rgb


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of more than 8 bits (modes I;16…, I, F) in 8; any other image unchanged.

    A value v becomes 255 v / white, rounded down, at least 0; plain conversion would clip at 255.
    For 16 bits (or 12, in a TIFF that says so) white is the largest value that they can hold. For
    32 bits it depends on the image's largest value: 1 (F), 255, 65535, or that value itself is
    white. If a TIFF says that 0 is white, the result is inverted.

    Raises:
        ValueError: a pixel is not a finite number.
    """
    if not _is_wide(image):
        return image
    tags: Mapping[int, object] = getattr(image, "tag_v2", {})  # of a TIFF
    white: float
    if image.mode.startswith("I;16"):
        white = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535
        image = image.convert("I")
    else:
        white_values = [1, 255, 65535] if image.mode == "F" else [255, 65535]
        if image.mode == "I" and tags and tags.get(ExifTags.Base.SampleFormat, (1,)) == (1,):
            image = _to_unsigned(image)
        if image.mode == "F" and not _is_finite(image):
            raise ValueError("a pixel is not a finite number")
        largest = _get_extrema(image)[1]
        white = next((value for value in white_values if largest <= value), largest)
    scale = 255 / white
    grey = image.point(lambda value: value * scale).convert("L")
    is_zero_white = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    return ImageOps.invert(grey) if is_zero_white else grey


def _decode_rgb(image: Image.Image, transparency: Transparency) -> Image.Image:
    """Return an open image's pixels."""
    _decode_transparent_value(image)
    image = decode(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return to_rgb(_apply_orientation(image), transparency)
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise RowError(f"the image is broken ({first_line(error)})") from None


def _to_rgba(image: Image.Image) -> Image.Image:
    """Return an image with transparent parts in RGBA, not premultiplied."""
    if _is_wide(image):  # one of its values is transparent
        import numpy as np

        is_opaque = np.asarray(image) != image.info["transparency"]
        grey = to_eight_bits(image)
        grey.putalpha(Image.fromarray(is_opaque))
        return grey.convert("RGBA")
    return image if image.mode == "RGBA" else _unpremultiply(image).convert("RGBA")


def _unpremultiply(image: Image.Image) -> Image.Image:
    """Return premultiplied grey as not premultiplied; Pillow has no other conversion from it."""
    return image.convert("LA") if image.mode == "La" else image


def _decode_transparent_value(image: Image.Image) -> None:
    """Convert a PNG's transparent grey or colour to the values of decoded pixels.

    Pillow leaves it as in the file, and the width of the file's pixels is known only until they are
    decoded.
    """
    stored = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    decode = _TRANSPARENCY_DECODERS.get(str(image.tile[0].args))
    if decode is not None and isinstance(stored, int):
        image.info["transparency"] = decode(stored)
    elif decode is not None and isinstance(stored, tuple):
        image.info["transparency"] = tuple(map(decode, stored))


def _to_unsigned(image: Image.Image) -> Image.Image:
    """Return an image of mode I with unsigned values; Pillow reads the upper half as negative."""
    if _get_extrema(image)[0] >= 0:
        return image
    import numpy as np

    return Image.fromarray(np.asarray(image).view(np.uint32).astype(np.float32))


def _is_finite(image: Image.Image) -> bool:
    """Return whether every pixel of an image of mode F is finite, which its mean then is too."""
    mean: float = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[assignment]
    return math.isfinite(mean)


def _get_extrema(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest value of a grey image."""
    low, high = image.getextrema()
    return float(low), float(high)  # type: ignore[arg-type]


def _is_wide(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _apply_orientation(image: Image.Image) -> Image.Image:
    if _get_orientation(image) in (None, 1):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF does not affect the picture
        return image


def _get_orientation(image: Image.Image) -> int | None:
    """Return a loaded image's EXIF orientation."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF does not affect the picture
        return None
