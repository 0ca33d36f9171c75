"""Small pictures of every kind of file that is read, with the pixels that they show and why.

Half transparent is 128 of 255. On white, a colour c under alpha a is seen as
(c · a + 255 · (255 - a)) / 255: red (255, 0, 0) under 128 is (255, 127, 127), black 127.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Pixels = list[tuple[int, int, int]]

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
HALF_RED, HALF_BLACK = (255, 127, 127), (127, 127, 127)
OWN = (10, 20, 30)  # opaque


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file of one row of pixels."""

    content: bytes
    white: Pixels  # as it is seen on white
    drop: Pixels  # its colours as they are stored
    plain: bool = True  # whether transformers' convert_to_rgb of the file Pillow opens is the same


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, depth: int, colour: int, row: bytes, *more: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in body)


def tiff(
    width: int,
    row: bytes,
    *,
    bits: Sequence[int],
    photometric: int,
    extra: int | None = None,
    samples: int = 1,
    colours: Sequence[int] = (),
    order: str = "<",
) -> bytes:
    """Make a TIFF of one strip.

    Args:
        width: in pixels.
        row: the strip.
        bits: of each sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK.
        extra: what the last sample is: 1 associated alpha, 2 unassociated.
        samples: their format: 1 unsigned, 2 signed, 3 decimal.
        colours: the palette, 768 values of 16 bits.
        order: of bytes.
    """
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, 3, [width]), (257, 3, [1]), (258, 3, list(bits)), (259, 3, [1]),
        (262, 3, [photometric]), (273, 4, [0]), (277, 3, [len(bits)]), (278, 3, [1]),
        (279, 4, [len(row)]),
        *([(320, 3, list(colours))] if colours else []),
        *([(338, 3, [extra])] if extra is not None else []),
        (339, 3, [samples] * len(bits)),
    ]  # fmt: skip
    place = 8 + 2 + 12 * len(tags) + 4  # where what does not fit into an entry begins
    beside, entries = b"", b""
    where = place + sum(
        2 * len(values) for _, kind, values in tags if kind == 3 and len(values) > 2
    )
    for tag, kind, values in tags:
        if tag == 273:
            values = [where]
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, beside = struct.pack(f"{order}I", place + len(beside)), beside + packed
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    count = struct.pack(f"{order}H", len(tags))
    return mark + struct.pack(f"{order}I", 8) + count + entries + b"\0" * 4 + beside + row


def bmp(pixels: Sequence[tuple[int, int, int, int]]) -> bytes:
    """Make a BMP of 32 bits whose header names a mask for alpha; pixels are RGBA."""
    row = b"".join(bytes([b, g, r, a]) for r, g, b, a in pixels)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, len(pixels), 1, 1, 32, 3, len(row), 0, 0, 0, 0)
    info += struct.pack("<4I", *masks) + b"BGRs" + b"\0" * 48
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(info) + len(row), 0, 0, 14 + len(info)) + info + row
    )


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def row(mode: str, pixels: Sequence[object]) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def grey(*values: int) -> Pixels:
    return [(value, value, value) for value in values]


def _palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = row("P", range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return image


_RGBA = [(255, 0, 0, 128), (0, 0, 0, 0), (0, 0, 0, 128), (*OWN, 255)]
_SEEN, _STORED = [HALF_RED, WHITE, HALF_BLACK, OWN], [RED, BLACK, BLACK, OWN]
_LA = [(0, 128), (0, 0), (90, 255)]
#: 16 bits of each are 257 times the 8: 0 to 65535 for 0 to 255.
_RGBA16 = struct.pack(">16H", *(257 * value for pixel in _RGBA for value in pixel))
_16 = struct.Struct
_PALETTE = [0] * 768
_PALETTE[1] = 65535  # colour 1 is red; the palette has all reds, all greens, all blues

TRANSPARENT: dict[str, Case] = {
    "PNG, RGBA": Case(content=encode(row("RGBA", _RGBA), "PNG"), white=_SEEN, drop=_STORED),
    "PNG, grey and alpha": Case(
        content=encode(row("LA", _LA), "PNG"), white=grey(127, 255, 90), drop=grey(0, 0, 90)
    ),
    "PNG, RGBA of 16 bits": Case(content=png(4, 16, 6, _RGBA16), white=_SEEN, drop=_STORED),
    "PNG, grey and alpha of 16 bits": Case(
        content=png(2, 16, 4, struct.pack(">4H", 0, 128 * 257, 90 * 257, 65535)),
        white=grey(127, 90), drop=grey(0, 90),
    ),
    "PNG, palette with an alpha for each colour": Case(
        content=encode(_palette(RED, BLACK, OWN), "PNG", transparency=bytes([128, 0, 255])),
        white=[HALF_RED, WHITE, OWN], drop=[RED, BLACK, OWN],
    ),
    "PNG, palette with one transparent colour": Case(
        content=encode(_palette(RED, BLACK, OWN), "PNG", transparency=1),
        white=[RED, WHITE, OWN], drop=[RED, BLACK, OWN],
    ),
    "PNG, palette, fewer alphas than colours": Case(  # the rest is opaque
        content=encode(_palette(RED, BLACK, OWN), "PNG", transparency=bytes([128])),
        white=[HALF_RED, BLACK, OWN], drop=[RED, BLACK, OWN],
    ),
    "PNG, RGB with a transparent colour": Case(
        content=png(2, 8, 2, bytes([*BLACK, *OWN]), (b"tRNS", bytes(6))),
        white=[WHITE, OWN], drop=[BLACK, OWN],
    ),
    # (18, 52, 86) in 16 bits is (0x1234, 0x3456, 0x5678): Pillow decodes the upper 8
    "PNG, RGB of 16 bits with a transparent colour": Case(
        content=png(
            2, 16, 2, struct.pack(">6H", 0x1234, 0x3456, 0x5678, 0x3412, 0x5634, 0x7856),
            (b"tRNS", struct.pack(">3H", 0x1234, 0x3456, 0x5678)),
        ),
        white=[WHITE, (0x34, 0x56, 0x78)], drop=[(0x12, 0x34, 0x56), (0x34, 0x56, 0x78)],
        plain=False,
    ),
    "PNG, grey with a transparent one": Case(
        content=png(3, 8, 0, bytes([0, 9, 255]), (b"tRNS", b"\0\0")),
        white=grey(255, 9, 255), drop=grey(0, 9, 255),
    ),
    # a grey of two bits is 0, 85, 170 or 255; 1 is the transparent one
    "PNG, grey of 2 bits with a transparent one": Case(
        content=png(4, 2, 0, bytes([0b00_01_10_11]), (b"tRNS", b"\0\1")),
        white=grey(0, 255, 170, 255), drop=grey(0, 85, 170, 255), plain=False,
    ),
    # of four bits 17 times as much; 3 is the transparent one
    "PNG, grey of 4 bits with a transparent one": Case(
        content=png(2, 4, 0, bytes([0x37]), (b"tRNS", b"\0\3")),
        white=grey(255, 119), drop=grey(51, 119), plain=False,
    ),
    "PNG, black and white, black transparent": Case(
        content=png(2, 1, 0, bytes([0b01_000000]), (b"tRNS", b"\0\0")),
        white=grey(255, 255), drop=grey(0, 255),
    ),
    # 256 and 257 are told apart, though both are 1 of 255 or less in 8 bits
    "PNG, grey of 16 bits with a transparent one": Case(
        content=png(3, 16, 0, struct.pack(">3H", 256, 257, 32896), (b"tRNS", b"\1\0")),
        white=grey(255, 1, 128), drop=grey(0, 1, 128), plain=False,
    ),
    "GIF with a transparent colour": Case(
        content=encode(_palette(RED, BLACK, OWN), "GIF", transparency=1),
        white=[RED, WHITE, OWN], drop=[RED, BLACK, OWN],
    ),
    "GIF, grey, with a transparent colour": Case(
        content=encode(row("L", [0, 90, 255]), "GIF", transparency=0),
        white=grey(255, 90, 255), drop=grey(0, 90, 255),
    ),
    "WebP with alpha": Case(
        content=encode(row("RGBA", _RGBA), "WEBP", lossless=True, exact=True),
        white=_SEEN, drop=_STORED,
    ),
    "BMP with an alpha mask": Case(content=bmp(_RGBA), white=_SEEN, drop=_STORED),
    "TIFF, RGBA": Case(content=encode(row("RGBA", _RGBA), "TIFF"), white=_SEEN, drop=_STORED),
    "TIFF, RGBA, packed": Case(
        content=encode(row("RGBA", _RGBA), "TIFF", compression="tiff_lzw"),
        white=_SEEN, drop=_STORED,
    ),
    # colours multiplied by alpha: half red is stored as (128, 0, 0, 128)
    "TIFF, RGBA, associated alpha": Case(
        content=tiff(
            4, bytes([128, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 128, *OWN, 255]),
            bits=[8] * 4, photometric=2, extra=1,
        ),
        white=_SEEN, drop=_STORED,
    ),
    "TIFF, RGBA of 16 bits, associated alpha": Case(
        content=tiff(
            2, struct.pack("<8H", *(257 * value for value in (128, 0, 0, 128, *OWN, 255))),
            bits=[16] * 4, photometric=2, extra=1,
        ),
        white=[HALF_RED, OWN], drop=[RED, OWN],
    ),
    "TIFF, RGBA of 16 bits": Case(
        content=tiff(4, _RGBA16, bits=[16] * 4, photometric=2, extra=2, order=">"),
        white=_SEEN, drop=_STORED,
    ),
    "TIFF, grey and alpha": Case(
        content=tiff(3, bytes([0, 128, 0, 0, 90, 255]), bits=[8, 8], photometric=1, extra=2),
        white=grey(127, 255, 90), drop=grey(0, 0, 90),
    ),
    # stored 64 under 128 is 255 · 64 / 128 = 127 of its own, and 64 + 127 on white
    "TIFF, grey, associated alpha": Case(
        content=tiff(3, bytes([64, 128, 0, 0, 90, 255]), bits=[8, 8], photometric=1, extra=1),
        white=grey(191, 255, 90), drop=grey(127, 0, 90), plain=False,
    ),
    "TIFF, palette and alpha": Case(
        content=tiff(
            3, bytes([1, 128, 0, 0, 1, 255]),
            bits=[8, 8], photometric=3, extra=2, colours=_PALETTE,
        ),
        white=[HALF_RED, WHITE, RED], drop=[RED, BLACK, RED],
    ),
}  # fmt: skip

#: What has no alpha: both ways are the same.
OPAQUE: dict[str, tuple[bytes, Pixels]] = {
    # no ink, all black ink, all of cyan
    "TIFF, CMYK": (
        tiff(3, bytes([0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0]), bits=[8] * 4, photometric=5),
        [WHITE, BLACK, (0, 255, 255)],
    ),
    "TIFF, a fourth sample that is none": (
        tiff(1, bytes([*RED, 0]), bits=[8] * 4, photometric=2, extra=0), [RED],
    ),
    "WebP": (encode(row("RGB", [RED, OWN]), "WEBP", lossless=True), [RED, OWN]),
    "GIF": (encode(_palette(RED, BLACK, OWN), "GIF"), [RED, BLACK, OWN]),
    "PNG, palette": (encode(_palette(RED, BLACK, OWN), "PNG"), [RED, BLACK, OWN]),
    "BMP": (encode(row("RGB", [RED, OWN]), "BMP"), [RED, OWN]),
}  # fmt: skip

#: Grey of more than 8 bits: v becomes 255 v / white without its decimals.
GREY: dict[str, tuple[bytes, list[int]]] = {
    # 255 · 32895 / 65535 = 127.996; that of 32896 is 128
    "PNG of 16 bits": (png(3, 16, 0, struct.pack(">3H", 32895, 32896, 65535)), [127, 128, 255]),
    "TIFF of 16 bits": (
        tiff(3, struct.pack("<3H", 256, 257, 65535), bits=[16], photometric=1), [0, 1, 255],
    ),
    "TIFF of 16 bits, big-endian": (
        tiff(3, struct.pack(">3H", 256, 257, 65535), bits=[16], photometric=1, order=">"),
        [0, 1, 255],
    ),
    # 0 is white: 255 - 0, 255 - 128, 255 - 255
    "TIFF of 16 bits, white is zero": (
        tiff(3, struct.pack("<3H", 0, 32896, 65535), bits=[16], photometric=0), [255, 127, 0],
    ),
    # two values in three bytes: 0xFFF is white, 0x800 is 255 · 2048 / 4095 = 127.5
    "TIFF of 12 bits": (tiff(2, bytes([0xFF, 0xF8, 0x00]), bits=[12], photometric=1), [255, 127]),
    # held in 32 bits: the largest is above 255, so 65535 is white; nothing is below black
    "TIFF of 16 bits with a sign": (
        tiff(3, struct.pack("<3h", -5, 257, 32767), bits=[16], photometric=1, samples=2),
        [0, 1, 127],
    ),
    "TIFF of 32 bits that hold 8": (
        tiff(3, struct.pack("<3I", 0, 100, 255), bits=[32], photometric=1), [0, 100, 255],
    ),
    "TIFF of 32 bits that hold 16": (
        tiff(3, struct.pack("<3I", 0, 32896, 65535), bits=[32], photometric=1), [0, 128, 255],
    ),
    # the largest, 2^20, is white
    "TIFF of 32 bits": (
        tiff(3, struct.pack("<3I", 0, 2**19, 2**20), bits=[32], photometric=1), [0, 127, 255],
    ),
    # above 2^31 Pillow gives a sign to what has none
    "TIFF of 32 bits, all of them": (
        tiff(3, struct.pack("<3I", 0, 2**31, 2**32 - 1), bits=[32], photometric=1), [0, 127, 255],
    ),
    "TIFF, decimal, up to 1": (
        tiff(3, struct.pack("<3f", 0, 0.5, 1), bits=[32], photometric=1, samples=3), [0, 127, 255],
    ),
    "TIFF, decimal, below 1": (
        tiff(2, struct.pack("<2f", 0.25, 0.75), bits=[32], photometric=1, samples=3), [63, 191],
    ),
    "TIFF, decimal, up to 255": (
        tiff(3, struct.pack(">3f", -1, 99.9, 255), bits=[32], photometric=1, samples=3, order=">"),
        [0, 99, 255],
    ),
    "TIFF, decimal, up to 65535": (
        tiff(2, struct.pack("<2f", 32896, 65535), bits=[32], photometric=1, samples=3), [128, 255],
    ),
    "TIFF, decimal, beyond": (
        tiff(2, struct.pack("<2f", 5e9, 1e10), bits=[32], photometric=1, samples=3), [127, 255],
    ),
    "TIFF, decimal, white is zero": (
        tiff(3, struct.pack("<3f", 0, 0.5, 1), bits=[32], photometric=0, samples=3), [255, 128, 0],
    ),
}  # fmt: skip
