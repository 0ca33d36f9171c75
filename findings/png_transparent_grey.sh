#!/usr/bin/env bash
# A PNG may declare one grey, or one colour, as transparent (tRNS). Pillow passes that value on as the
# file has it, but scales grey of 2 and 4 bits up to 8 and reduces colours of 16 bits to 8: the two
# no longer match. So `convert("RGBA")`, and with it transformers' `convert_to_rgb`, which puts pictures on
# white, silently leaves such a picture opaque. The PNG specification (tRNS) gives the value in
# the image's own bit depth.
# Exits 0 while this holds, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys
import zlib

import numpy
import PIL
import transformers
from PIL import Image
from transformers.image_transforms import convert_to_rgb

print(f"Pillow {PIL.__version__}, transformers {transformers.__version__}")


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, depth, colour, row, transparent):
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"tRNS", transparent)
    body += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# name -> (file whose first pixel is the transparent one, and is to be white on white; as seen)
cases = {
    "grey, 8 bits": (png(2, 8, 0, bytes([5, 9]), b"\0\5"), 255),
    "grey, 2 bits": (png(2, 2, 0, bytes([0b01_10_0000]), b"\0\1"), 85),
    "grey, 4 bits": (png(2, 4, 0, bytes([0x37]), b"\0\3"), 51),
    "grey, 16 bits": (png(2, 16, 0, struct.pack(">2H", 256, 32896), b"\1\0"), None),
    "RGB, 16 bits": (
        png(1, 16, 2, struct.pack(">3H", 0x1234, 0x1234, 0x1234), struct.pack(">3H", *[0x1234] * 3)),
        0x12,
    ),
}
changed = False
for name, (content, expected) in cases.items():
    with Image.open(io.BytesIO(content)) as image:
        named = image.info["transparency"]
        seen = convert_to_rgb(image, return_numpy=True)[0, 0].tolist()
    right = "as it should be" if seen == [255] * 3 else "should be [255, 255, 255]"
    print(f"{name}: transparency {named}, first pixel on white {seen}: {right}")
    changed = changed or (expected is not None and seen != [expected] * 3)
sys.exit(1 if changed else 0)
PYTHON
