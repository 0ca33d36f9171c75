"""Draw the strategies' rejected images, and a series of diffusion timesteps.

The figure is like the one in the paper; a study on rejected images can log it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from chip_core.config.strategies import STRATEGIES
from chip_core.config.trial import RejectedImageConfig
from chip_core.data.image_files import read_image
from chip_core.data.rejected_images import ImageSample, RejectedImageMaker, find_strategy
from chip_core.data.rejected_images.images import limit_pixels, to_rgb_image
from chip_core.data.rows import RowError
from chip_core.shapes import world
from chip_core.utils.errors import TrialError, UserError

#: T of the series, with the spacing of the paper's study of noise steps.
TIMESTEPS = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
THUMBNAIL_SIDE = 192  # pixels of the longest side of a picture in the figure


@dataclass(frozen=True, kw_only=True)
class GalleryImage:
    """An image of the gallery."""

    id: str
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class GalleryCell:
    """One picture of the figure, or why it is missing."""

    row: str  # name of the true image
    title: str  # strategy or T
    image: Image.Image | None
    note: str | None  # "void", or what is missing


def make_scenes(count: int) -> list[GalleryImage]:
    """Return images of the embedded world's training split."""
    scenes = [world.make_scene("train", index) for index in range(count)]
    return [GalleryImage(id=scene.id, image=world.draw_scene(scene)) for scene in scenes]


def read_images(paths: Iterable[Path]) -> list[GalleryImage]:
    """Read images from files. They are named by file stem, numbered if it repeats.

    Raises:
        UserError: a file cannot be read as an image.
    """
    images: list[GalleryImage] = []
    for path in paths:
        names = {image.id for image in images}
        numbered = (f"{path.stem} ({number})" for number in itertools.count(2))
        name = next(name for name in itertools.chain([path.stem], numbered) if name not in names)
        try:
            path.stat()
            images.append(GalleryImage(id=name, image=limit_pixels(read_image(path))))
        except (OSError, RowError) as error:
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["broken"])[0]
            raise UserError(f"{path}: cannot be read as an image: {reason}") from None
    return images


def make_gallery_cells(
    images: Sequence[ImageSample],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    settings: Mapping[str, Any] | None = None,
    strategies: Sequence[str] | None = None,
    seed: int = 0,
) -> list[GalleryCell]:
    """Return the pictures of the figure, image by image: strategies first, then the T series.

    Args:
        images: the true images.
        timesteps: values of T in the series.
        settings: settings of `rejected_image`, e.g. `{"crop": {"share": 0.2}}`.
        strategies: names of the strategies; None: all of them.
        seed: the corruption seed.
    """
    settings = settings or {}
    names = list(STRATEGIES) if strategies is None else list(strategies)
    # A single image cannot be exchanged for another: images of the embedded world are used.
    others = images if len(images) > 1 else [*images, *make_scenes(3)]
    cells = []
    for image in images:
        cells.append(
            GalleryCell(row=image.id, title="image", image=to_rgb_image(image.image), note=None)
        )
        for name in names:
            cells.append(
                _make_cell(image, name, {**settings, "strategy": name}, name, others, seed)
            )
        for timestep in timesteps:
            noisy = {
                "strategy": "diffusion",
                "diffusion": {**settings.get("diffusion", {}), "timestep": timestep},
            }
            cells.append(_make_cell(image, f"T = {timestep}", noisy, "diffusion", others, seed))
    return cells


def _make_cell(
    image: ImageSample,
    title: str,
    settings: Mapping[str, Any],
    strategy: str,
    others: Sequence[ImageSample],
    seed: int,
) -> GalleryCell:
    if find_strategy(strategy).traits.needs_given:
        return GalleryCell(row=image.id, title=title, image=None, note="from the data")
    if strategy == "inpaint" and not settings.get("inpaint", {}).get("path"):
        return GalleryCell(row=image.id, title=title, image=None, note="needs a pipeline")
    config = RejectedImageConfig.model_validate(settings)
    return make_preview_cell(config, image, title, others, seed=seed)


def make_preview_cell(
    config: RejectedImageConfig,
    image: ImageSample,
    title: str,
    others: Sequence[ImageSample],
    *,
    seed: int = 0,
    given: Image.Image | None = None,
) -> GalleryCell:
    """Return what a strategy makes of an image, or why it makes nothing.

    Args:
        config: the strategy with its settings.
        image: the true image.
        title: title of the cell.
        others: images that it may be exchanged for.
        seed: seed of the corruption.
        given: the rejected image of the data, if there is one.
    """
    try:
        preview = RejectedImageMaker(config, seed=seed).preview(image, others=others, given=given)
    except TrialError as error:
        return GalleryCell(row=image.id, title=title, image=None, note=str(error))
    return GalleryCell(
        row=image.id, title=title, image=preview.image, note="void" if preview.void else None
    )


def draw_gallery(cells: Sequence[GalleryCell], path: Path) -> None:
    """Draw the figure: for each image a row of strategies and a row of the T series."""
    rows: list[list[GalleryCell]] = []
    for name in dict.fromkeys(cell.row for cell in cells):
        image_cells = [cell for cell in cells if cell.row == name]
        series = [cell for cell in image_cells if cell.title.startswith("T = ")]
        rows.append([cell for cell in image_cells if cell not in series])
        if series:
            rows.append(series)
    draw_rows(rows, path)


def draw_rows(
    rows: Sequence[Sequence[GalleryCell]], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Draw rows of pictures as one figure. The file appears only when it is complete.

    Args:
        rows: the pictures, row by row.
        path: the file; its suffix selects the format.
        metadata: text to store in the file.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(1.15 * columns, 1.35 * len(rows)), dpi=120, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row_axes, row in zip(grid, rows, strict=True):
        for axes, cell in zip(row_axes, row, strict=False):
            _draw_cell(axes, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, metadata=metadata)
    partial.replace(path)


def _draw_cell(axes: Any, cell: GalleryCell) -> None:
    axes.set_title(cell.title, fontsize=8, pad=2)
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    if cell.image is not None:
        picture = cell.image.copy()
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        axes.imshow(picture, interpolation="nearest")
    else:
        axes.set_aspect("equal")
    if cell.note is not None:
        text = "\n".join(cell.note.split()[:8])
        position = {"transform": axes.transAxes, "ha": "center", "va": "center", "fontsize": 8}
        axes.text(0.5, 0.5, text, **position, bbox={"facecolor": "white", "edgecolor": "none"})
