"""Small data files, made on the spot."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from .pictures import chunk

SIZE = (12, 8)


def make_image_bytes(kind: str = "JPEG", size: tuple[int, int] = SIZE, colour: int = 200) -> bytes:
    """Make an image file's bytes."""
    out = io.BytesIO()
    Image.new("RGB", size, (colour, 40, 90)).save(out, kind)
    return out.getvalue()


def make_huge_png() -> bytes:
    """Make a PNG of a few bytes whose header says 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def make_rlhf_v_row(index: int, **changes: Any) -> dict[str, Any]:
    """Make a row as RLHF-V has it; `question`, `chosen` and `rejected` go into `text`."""
    texts = {
        "question": f"What is in picture {index}?",
        "chosen": f"A red ball number {index}.",
        "rejected": f"A red ball number {index} and a dog.",
    }
    said = {key: changes.pop(key, value) for key, value in texts.items()}
    row = {
        "ds_name": "RLHF-V",
        "image": {"bytes": make_image_bytes(colour=index % 256), "path": f"{index}.jpg"},
        "text": json.dumps(said),
        "origin_dataset": "made",
        "origin_split": "train",
        "idx": index,
        "image_path": f"{index}.jpg",
    }
    return {**row, **changes}


def make_rlaif_v_row(index: int, **changes: Any) -> dict[str, Any]:
    """Make a row as RLAIF-V has it."""
    row = make_rlhf_v_row(index)
    texts = json.loads(row.pop("text"))
    return {**row, **texts, "idx": f"r{index}", **changes}


def make_message(role: str, text: str, images: int = 0) -> dict[str, Any]:
    """Make a message whose content is a list of parts."""
    parts: list[dict[str, Any]] = [{"type": "image", "text": None}] * images
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def make_trl_row(index: int, **changes: Any) -> dict[str, Any]:
    """Make a row as TRL's preference format has it, as messages."""
    row = {
        "prompt": [make_message("user", f"What is in picture {index}?", images=1)],
        "chosen": [make_message("assistant", "A red ball.")],
        "rejected": [make_message("assistant", "A red ball and a dog.")],
        "images": [{"bytes": make_image_bytes(), "path": None}],
    }
    return {**row, **changes}


def make_path_row(index: int, **changes: Any) -> dict[str, Any]:
    """Make a row with an image path."""
    row = {
        "id": f"pair-{index}",
        "image": f"images/{index}.jpg",
        "prompt": "<image>\nWhat is it?",
        "chosen": "A red ball.",
        "rejected": "A red ball and a dog.",
    }
    return {**row, **changes}


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    """Write rows as parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    return path


def write_lines(path: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    """Write rows as JSON lines; bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(each + b"\n" for each in lines))
    return path


def write_images(folder: Path, count: int) -> None:
    """Write images/0.jpg and on."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / "images" / f"{index}.jpg").write_bytes(make_image_bytes(colour=index))
