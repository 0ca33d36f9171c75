"""Draw a study's rejected images for its report.

The figure shows each strategy and setting of an arm on a few of the study's training images. The
driver draws it after the trials: then the data exist and no worker waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from chip_core.config.trial import RejectedImageConfig, TrialConfig
from chip_core.data.preferences import PreferencePair, first_pairs
from chip_core.data.rejected_images import RejectedImageMaker
from chip_core.utils.errors import TrialError
from orchestrator.plan.plan import Plan
from orchestrator.report.figures.gallery import GalleryCell, draw_lines

#: Path of the figure in a report's folder.
FIGURE = Path("figures") / "rejected-images.png"
IMAGES = 3
COLUMNS = 12

_SHOWN = "Description"  # key of the PNG's text with the hash of what it shows


def varies_rejected_images(plan: Plan) -> bool:
    """Return whether a factor sets rejected images or the arms' rejected images differ."""
    visual = _visual(plan)
    keys = (
        key for factor in plan.study.factors for level in factor.levels for key in level.overrides
    )
    touched = any(key.split(".")[0] == "rejected_image" for key in keys)
    return bool(visual) and (touched or len(_titles(visual.values())) > 1)


def draw_rejected_images(plan: Plan, folder: Path) -> Path:
    """Draw the figure into a report's folder, unless it already shows the same.

    Returns:
        the path of the figure.

    Raises:
        Exception: any error of the data, of a user's strategy or of the disk.
    """
    out = folder / FIGURE
    visual = _visual(plan)
    mark = hashlib.sha256(" ".join(visual).encode()).hexdigest()
    if _shown(out) == mark:
        return out
    config = next(iter(visual.values()))
    pairs = first_pairs(config.data, IMAGES)
    if not pairs:
        raise TrialError(f"{config.data.source}: no image among its first rows")
    lines: list[list[GalleryCell]] = []
    for pair in pairs:
        cells = [GalleryCell(row=pair.id, title="image", image=pair.image, note=None)]
        for title, settings in _titles(visual.values()).items():
            cells.append(_cell(pair, title, settings, pairs))
        lines += [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    draw_lines(lines, out, metadata={_SHOWN: mark})
    return out


def _visual(plan: Plan) -> dict[str, TrialConfig]:
    """Return the arms that use a rejected image, by the fingerprint of their first seed."""
    first = (arm.trials[0] for arm in plan.arms)
    return {
        trial.fingerprint: trial.config
        for trial in first
        if trial.config.objective.needs_rejected_image
    }


def _titles(configs: Iterable[TrialConfig]) -> dict[str, RejectedImageConfig]:
    """Return each strategy with its settings once, named by the settings that differ."""
    found: dict[str, RejectedImageConfig] = {}
    for config in configs:
        chosen = config.rejected_image
        found.setdefault(f"{chosen.strategy} {chosen.settings.model_dump_json()}", chosen)
    titles: dict[str, RejectedImageConfig] = {}
    for chosen in found.values():
        alike = [other for other in found.values() if other.strategy == chosen.strategy]
        titles["\n".join([chosen.strategy, *_differing(chosen, alike)])] = chosen
    return titles


def _differing(chosen: RejectedImageConfig, alike: Sequence[RejectedImageConfig]) -> list[str]:
    values: list[Mapping[str, Any]] = [other.settings.model_dump() for other in alike]
    mine = chosen.settings.model_dump()
    return [
        f"{key} {mine[key]}" for key in mine if any(value[key] != mine[key] for value in values)
    ]


def _cell(
    pair: PreferencePair,
    title: str,
    settings: RejectedImageConfig,
    others: Sequence[PreferencePair],
) -> GalleryCell:
    try:
        made = RejectedImageMaker(settings).preview(pair, others=others, given=pair.rejected_image)
    except TrialError as error:
        return GalleryCell(row=pair.id, title=title, image=None, note=str(error))
    return GalleryCell(
        row=pair.id, title=title, image=made.image, note="void" if made.void else None
    )


def _shown(figure: Path) -> str | None:
    """Return the hash of what a figure shows; None if it is missing or broken."""
    try:
        with Image.open(figure) as opened:
            return opened.info.get(_SHOWN)
    except OSError:
        return None
