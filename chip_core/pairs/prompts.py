"""Read the prompts to sample a model with: from a data source, or from the embedded world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from chip_core.config.identity import fingerprint
from chip_core.config.trial import DataConfig
from chip_core.data import identity as data_identity
from chip_core.data.checks import MAX_SHOWN_ROWS, RowImages, iter_sizes
from chip_core.data.formats import FORMATS, Format, find_format
from chip_core.data.formats.base import (
    CHOSEN_IMAGE_COLUMNS,
    find_first_image,
    read_row_id,
    read_text_cell,
    strip_image_placeholder,
)
from chip_core.data.image_files import ImageReader
from chip_core.data.rows import BadRow, ImageRef, RowError, check_text
from chip_core.data.source import SHAPES, DataSource, open_source
from chip_core.evaluation.task import Item, Picture
from chip_core.shapes import world
from chip_core.utils.errors import ConfigError, TrialError

SPLIT = "train"  # of the embedded world: no benchmark uses it


def read_prompts(data: DataConfig) -> list[Item]:
    """Return the prompts of a source's rows, in order, each with an id of its own.

    A row needs an image and a prompt, in any of the formats of preference data; its other cells are
    in the item's fields.

    Raises:
        ConfigError: the source cannot be read, or has a row without image or prompt.
    """
    if data.source == SHAPES:
        size = world.SPLIT_SIZES[SPLIT]
        return [_scene_item(index) for index in range(min(size, data.limit or size))]
    source, layout = open_prompts(data)
    items, bad, ids = list[Item](), list[str](), set[str]()
    for index in range(len(source)):
        try:
            item = _make_item(source, layout, index, ids)
        except RowError as error:
            bad.append(f"{source.location(index)}: {error}")
            continue
        ids.add(item.id)
        items.append(item)
    if bad:
        suffix = [f"{data.source}: … and {len(bad) - MAX_SHOWN_ROWS} more"] * (
            len(bad) > MAX_SHOWN_ROWS
        )
        raise ConfigError([*bad[:MAX_SHOWN_ROWS], *suffix])
    if not items:
        raise ConfigError([f"{data.source} holds no prompt: give rows of image and prompt"])
    return items


def check_prompts(data: DataConfig, threads: int = 1) -> Iterator[BadRow | None]:
    """Yield, for each row of a source, why it is not a prompt, or None; its image is decoded.

    Args:
        data: the source; not the embedded world.
        threads: how many decode images.

    Raises:
        ConfigError: the source cannot be read.
    """
    source, layout = open_prompts(data)

    def read() -> Iterator[tuple[tuple[int, str | None], RowImages | None]]:
        for index in range(len(source)):
            try:
                row = _prompt_row(source, layout, index)
            except RowError as error:
                yield (index, str(error)), None
            else:
                yield (index, None), RowImages(reader=row.images, refs=(("", row.image),))

    for (index, problem), sizes in iter_sizes(source, read(), threads):
        reason = sizes if isinstance(sizes, str) else problem
        yield None if reason is None else BadRow(location=source.location(index), reason=reason)


def open_prompts(data: DataConfig) -> tuple[DataSource, Format]:
    """Open a source whose rows need no responses; return it and the layout of its rows.

    Raises:
        ConfigError: as `open_source`.
    """
    layout = FORMATS[data.format] if data.format != "auto" else None
    # `jsonl` does not check the columns before rows are read.
    source = open_source(data.model_copy(update={"format": "jsonl"}))
    kinds: Mapping[str, str] = source.tables[0].kinds if source.tables else {}
    return source, layout or find_format(kinds) or FORMATS["jsonl"]


def prompts_identity(prompts: DataConfig) -> dict[str, Any]:
    """Return the prompts' part of a provenance: their content as one hash, and the most to use.

    Raises:
        ConfigError: they cannot be read.
    """
    # As rows of any columns, because they need no responses.
    content = data_identity(prompts.model_copy(update={"format": "jsonl"}))
    return {"content": fingerprint(content), "limit": prompts.limit}


def _scene_item(index: int) -> Item:
    name = f"{SPLIT}/{index}"
    picture = Picture(key=name, read=lambda: world.draw_scene(world.make_scene(SPLIT, index)))
    return Item(id=name, prompt=world.get_question(SPLIT, index), pictures=(picture,))


@dataclass(frozen=True, kw_only=True)
class _PromptRow:
    """A row as a prompt."""

    raw: Mapping[str, Any]
    prompt: str
    id: str | None
    image: ImageRef
    images: ImageReader


def _prompt_row(source: DataSource, layout: Format, index: int) -> _PromptRow:
    raw, images = source.raw(index)
    if layout.name == "jsonl" and "chosen" not in raw:
        prompt = strip_image_placeholder(read_text_cell(raw, "prompt", "question"))
        name = read_row_id(raw)
    else:
        texts = layout.parse_texts(raw)
        prompt, name = texts.prompt, texts.id
    check_text("prompt", prompt)
    image = _prompt_image(layout, raw)
    if image == ImageRef():
        raise RowError("no image")
    return _PromptRow(raw=raw, prompt=prompt, id=name, image=image, images=images)


def _make_item(source: DataSource, layout: Format, index: int, ids: set[str]) -> Item:
    row = _prompt_row(source, layout, index)
    name = row.id or source.fallback_id(index)
    return Item(
        id=f"{name}@{index}" if name in ids else name,
        prompt=row.prompt,
        pictures=(_make_picture(source, layout, index, row.image, row.images),),
        fields=dict(_iter_plain_cells(row.raw)),
    )


def _prompt_image(layout: Format, raw: Mapping[str, Any]) -> ImageRef:
    """Return the image of a prompt: the pair's image, or the chosen response's own."""
    image = layout.parse_image(raw)
    return image if image != ImageRef() else find_first_image(raw, *CHOSEN_IMAGE_COLUMNS)


def _make_picture(
    source: DataSource, layout: Format, index: int, image: ImageRef, images: ImageReader
) -> Picture:
    if image.data is None and image.path is not None:
        file = images.resolve_file(image.path)
        return Picture(
            key=str(file), read=lambda: _read_image(source, index, image, images), file=file
        )

    def read() -> Image.Image:
        raw, _ = source.raw(index)  # its bytes are not in memory until then
        return _read_image(source, index, _prompt_image(layout, raw), images)

    return Picture(key=str(source.location(index)), read=read)


def _read_image(
    source: DataSource, index: int, image: ImageRef, images: ImageReader
) -> Image.Image:
    try:
        return images.read(image)
    except RowError as error:
        raise TrialError(f"{source.location(index)}: {error}") from None


def _iter_plain_cells(raw: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the cells without image bytes."""
    for name, value in raw.items():
        if not isinstance(value, bytes) and not (isinstance(value, dict) and "bytes" in value):
            yield name, value
