"""gallery: draw what the rejected-image strategies make of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.common.options import make_override_option, unique_values
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import IntegerType, PathType, parse_integers


class _TimestepsType(click.ParamType[Any]):
    name = "timesteps"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        text = str(value).strip()  # empty: no series
        steps = parse_integers(self, text, "0,250,500", param, ctx) if text else []
        if not all(0 <= step <= 999 for step in steps):
            self.fail(
                f"'{value}' is not a list of steps from 0 to 999: write 0,250,500", param, ctx
            )
        return steps


@click.command(epilog="Example: chip-ablate gallery photo.jpg --out gallery.png")
@click.argument("images", nargs=-1, type=PathType(), metavar="[IMAGE]...")
@click.option(
    "--out",
    type=PathType("file"),
    default=Path("gallery.png"),
    show_default=True,
    help="File for the figure: .png, .pdf or .svg.",
)
@click.option("--timesteps", type=_TimestepsType(), help="Timesteps of the noise series: 0,250,500")
@click.option(
    "--seed", type=IntegerType(0), default=0, show_default=True, help="Seed of the draws."
)
@make_override_option(
    "A key below rejected_image: crop.share=0.2; strategy=NAME draws only that one."
)
@json_option("Print what is shown as JSON.")
def gallery(
    images: tuple[Path, ...],
    out: Path,
    timesteps: list[int] | None,
    seed: int,
    overrides: Sequence[tuple[str, Any]],
    as_json: bool,
) -> None:
    """Draw what every rejected-image strategy makes of IMAGEs, as one figure.

    Without IMAGEs, scenes of the embedded world are shown. A strategy of your own is drawn with
    `--set strategy=module:attr`.
    """
    from chip_core.utils.errors import UserError
    from orchestrator.report.figures import gallery as pictures

    if out.suffix not in (".png", ".pdf", ".svg"):
        raise click.UsageError(f"--out: {out}: {out.suffix or 'nothing'} is not a figure format")
    settings = _parse_rejected_image(overrides, series=timesteps is not None)
    pictures_read = pictures.read_images(images) if images else pictures.make_scenes(3)
    strategies = [settings["strategy"]] if "strategy" in settings else None
    series = pictures.TIMESTEPS if strategies in (None, ["diffusion"]) else ()
    steps = series if timesteps is None else timesteps
    cells = pictures.make_gallery_cells(
        pictures_read, timesteps=steps, settings=settings, strategies=strategies, seed=seed
    )
    try:
        pictures.draw_gallery(cells, out)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror})") from None
    if as_json:
        cell_entries = [
            {"image": cell.row, "shown": cell.title, "note": cell.note} for cell in cells
        ]
        print_json({"out": str(out), "cells": cell_entries})
        return
    notes = [f"{cell.row}, {cell.title}: {cell.note}" for cell in cells if cell.note]
    click.echo("\n".join([*notes, f"written: {out}"]))


def _check_keys_drawn(settings: Mapping[str, Any], *, series: bool) -> None:
    """Refuse settings of a strategy that is not drawn; a series of T is of diffusion."""
    from chip_core.config.strategies import STRATEGIES
    from chip_core.utils import registry

    strategy = str(settings.get("strategy", ""))
    drawn_keys = {strategy} if strategy else set(STRATEGIES)
    if registry.is_plugin(strategy):
        drawn_keys = {"parameters"}
    if series:
        drawn_keys.add("diffusion")
    for key in sorted(settings.keys() - drawn_keys - {"strategy"}):
        reason = f"only {strategy} is drawn" if strategy else "name the strategy: --set strategy=…"
        raise click.UsageError(f"--set {key}: has no effect: {reason}")


def _parse_rejected_image(overrides: Sequence[tuple[str, Any]], *, series: bool) -> dict[str, Any]:
    """Return the keys given below `rejected_image`, checked."""
    from chip_core.config.trial import RejectedImageConfig
    from chip_core.config.validation import find_key_problem, parse_model, set_key
    from chip_core.utils.errors import ConfigError

    tree: dict[str, Any] = {}
    for key, value in unique_values("--set", overrides).items():
        full_key = f"rejected_image.{key.removeprefix('rejected_image.')}"
        problem = find_key_problem(full_key)
        if problem is not None:
            raise ConfigError([f"--set: {key}: {problem}"])
        if full_key.split(".")[1] in ("corruption_seed", "redraw"):
            raise ConfigError([f"--set: {key}: has no effect on a picture: --seed draws another"])
        set_key(tree, full_key, value)
    settings: dict[str, Any] = tree.get("rejected_image", {})
    _check_keys_drawn(settings, series=series)
    implied = {"strategy": "inpaint"} if "inpaint" in settings else {}
    parse_model(RejectedImageConfig, {**settings, **implied}, "--set")
    return settings
