"""The set to compute representations of: images, each with a true and a hallucinated text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from chip_core.data.image_files import read_image, resolve_inside
from chip_core.data.rows import RowError
from chip_core.shapes.world import (
    SPLIT_SIZES,
    draw_scene,
    get_question,
    make_faithful_caption,
    make_partner_caption,
    make_scene,
)
from chip_core.utils.errors import UserError
from chip_core.utils.files import parse_json

SHAPES = "shapes"
PROMPT = "Describe the image."


@dataclass(frozen=True, kw_only=True)
class DescribedImage:
    """One image with a true and a hallucinated description."""

    id: str
    image: Callable[[], Image.Image]  # read on each call
    prompt: str  # the prompt that the descriptions answer
    true: str
    hallucinated: str


def read_described_images(source: str, items: int) -> list[DescribedImage]:
    """Return the first items of a set.

    Args:
        source: "shapes", or a JSON-lines file; each line has `image` (a path, relative to the
            file), `true` and `hallucinated`, and may have `id` and `prompt`.
        items: how many, at most.

    Raises:
        UserError: the file cannot be read, or a line lacks something (the first such line).
    """
    if source == SHAPES:
        return _scene_images(items)
    file = Path(source).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"--descriptions: {source} cannot be read ({reason}): "
            f"name a JSON-lines file, or {SHAPES}"
        ) from None
    items_read: list[DescribedImage] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and len(items_read) < items:
            items_read.append(_parse_row(line, f"{source}:{number}", file.parent))
    if len(items_read) < 2:
        raise UserError(
            f"--descriptions: {source} holds {len(items_read)} items: at least two are needed"
        )
    return items_read


def _scene_images(items: int) -> list[DescribedImage]:
    """Return the test split's scenes in which a usual partner is missing, in order.

    The hallucinated description is the true one, but also names that partner as present.
    """
    found: list[DescribedImage] = []
    for index in range(SPLIT_SIZES["test"]):
        shown = make_scene("test", index)
        hallucinated = make_partner_caption(shown)
        if hallucinated is not None and len(found) < items:
            found.append(
                DescribedImage(
                    id=shown.id,
                    image=lambda shown=shown: draw_scene(shown),  # type: ignore[misc]
                    prompt=get_question("test", index),
                    true=make_faithful_caption(shown),
                    hallucinated=hallucinated,
                )
            )
    return found


def _parse_row(line: str, location: str, folder: Path) -> DescribedImage:
    try:
        row: Any = parse_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{location}: not a JSON object")
    required = ("image", "true", "hallucinated")
    missing = [name for name in required if not isinstance(row.get(name), str) or not row[name]]
    if missing:
        raise UserError(f"{location}: {_quote_names(missing)} is missing or not text")
    try:
        path = resolve_inside(folder.resolve(), row["image"])
    except RowError as error:
        raise UserError(f"{location}: {error}") from None
    return DescribedImage(
        id=str(row.get("id", path.stem)),
        image=lambda: _read_image(path),
        prompt=str(row.get("prompt", PROMPT)),
        true=row["true"],
        hallucinated=row["hallucinated"],
    )


def _read_image(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except RowError as error:
        raise UserError(f"{path} cannot be read as an image ({error})") from None


def _quote_names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
