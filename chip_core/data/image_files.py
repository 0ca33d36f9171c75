"""From what a row says of an image to an RGB image, without trusting the row."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from chip_core.data.rows import ImageRef, RowError

#: Pillow's own bound; an image's header is looked at before a pixel is decoded.
MAX_PIXELS = 89_478_485
#: Of an image as it is stored: more is no picture of that many pixels.
MAX_BYTES = 2**28
_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class ImageReader:
    """Reads the images of one data file; paths are relative to a folder and stay inside it."""

    def __init__(self, root: Path | None) -> None:
        self._root = None if root is None else root.resolve()

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """Return (width, height) of an image that decodes whole, as it is seen once it is turned.

        A JPEG is decoded at an eighth of its size: all its bytes are read, few pixels are made.

        Raises:
            RowError: there is no image, it is broken, too large, or lies outside the folder.
        """
        with self._open(ref) as image:
            width, height = image.size
            image.draft("RGB", (1, 1))
            _rgb(image)
            on_its_side = _orientation(image) in (5, 6, 7, 8)
        return (height, width) if on_its_side else (width, height)

    def read(self, ref: ImageRef) -> Image.Image:
        """Return the image as RGB, turned as its EXIF orientation says.

        Raises:
            RowError: as `size`.
        """
        with self._open(ref) as image:
            return _rgb(image)

    def small(self, ref: ImageRef) -> Image.Image:
        """Return the image as RGB; a JPEG is decoded at a part of its size, in a part of the time.

        Raises:
            RowError: as `size`.
        """
        with self._open(ref) as image:
            image.draft("RGB", (64, 64))
            return _rgb(image)

    def file(self, path: str) -> Path:
        """Return the file of a path that a row names.

        Raises:
            RowError: it leaves the folder, or there is no such file.
        """
        if "://" in path:
            raise RowError(f"image {path[:80]!r} is a URL: fetch the images, then name paths")
        if self._root is None:
            raise RowError(f"image {path!r} is a path: say under which folder by data.image_root")
        return inside(self._root, path)

    def _open(self, ref: ImageRef) -> Image.Image:
        if ref.data is None and ref.path is None:
            raise RowError("no image")
        if ref.data is not None and not ref.data:
            raise RowError("the image has no bytes")
        return open_image(self.file(ref.path or "") if ref.data is None else ref.data)


def open_image(source: Path | bytes) -> Image.Image:
    """Return an image of any origin, bounded and not yet decoded; of several frames the first.

    Raises:
        RowError: it is of no kind that is read, broken, or larger than the bounds.
    """
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > MAX_BYTES:
            raise RowError(f"the image has {size} bytes, more than {MAX_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad image is told as a bad row
            image = Image.open(
                source if isinstance(source, Path) else io.BytesIO(source), formats=_KINDS
            )
    except RowError:
        raise
    except Image.DecompressionBombError:
        raise RowError(f"the image has more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise RowError(f"the image is none of {', '.join(_KINDS)}") from None
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise RowError(f"the image cannot be read ({_brief(error)})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise RowError(f"the image has {width} x {height} pixels, more than {MAX_PIXELS}")
    return image


def inside(root: Path, path: str) -> Path:
    """Return the image file that a path of any origin names below a folder.

    Args:
        root: the folder, resolved.
        path: relative to it; neither `..` nor a link may lead out of it.

    Raises:
        RowError: it leaves the folder, or there is no such file.
    """
    try:
        file = (root / path).resolve()
        within = file.is_relative_to(root)
        found = within and file.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise RowError(f"image path {path[:80]!r} is no path ({error})") from None
    if not within:
        raise RowError(f"image path {path!r} leaves its folder {root}")
    if not found:
        raise RowError(f"no image {path!r} in {root}")
    return file


def decoded(image: Image.Image) -> Image.Image:
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
        raise RowError(f"the image is broken ({_brief(error)})") from None


def _rgb(image: Image.Image) -> Image.Image:
    image = decoded(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return eight_bits(_upright(image)).convert("RGB")
    except Exception as error:  # a decoder may raise anything on broken bytes
        raise RowError(f"the image is broken ({_brief(error)})") from None


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of more than 8 bits (modes I;16…, I, F) in 8; any other as it is.

    Conversion alone would cut at 255. Of 16 bits all are taken to be used; what 32 bits hold is
    told by their largest value: 1 (F), 255, 65535, or that value itself is white.
    """
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode not in ("I", "F"):
        return image
    top = float(image.getextrema()[1])  # type: ignore[arg-type]
    if not math.isfinite(top):
        raise ValueError("a pixel is not a finite number")
    whites = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    white = next((value for value in whites if top <= value), top)
    return image.point(lambda value: value * (255 / white)).convert("L")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing of the picture
        return image


def _orientation(image: Image.Image) -> int | None:
    """Return a loaded image's EXIF orientation."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF says nothing of the picture
        return None


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
