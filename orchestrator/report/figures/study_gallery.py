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
from chip_core.data.preferences import load_first_pairs
from chip_core.utils.errors import TrialError
from orchestrator.plan.plan import Plan
from orchestrator.report.figures.gallery import GalleryCell, draw_rows, make_preview_cell

#: Path of the figure in a report's folder.
FIGURE_PATH = Path("figures") / "rejected-images.png"
IMAGE_COUNT = 3
COLUMN_COUNT = 12

_HASH_KEY = "Description"  # key of the PNG's text with the hash of what it shows


def varies_rejected_images(plan: Plan) -> bool:
    """Return whether a factor sets rejected images or the arms' rejected images differ."""
    configs = _visual_configs(plan)
    keys = (
        key for factor in plan.study.factors for level in factor.levels for key in level.overrides
    )
    is_factor = any(key.split(".")[0] == "rejected_image" for key in keys)
    return bool(configs) and (is_factor or len(_settings_by_title(configs.values())) > 1)


def draw_rejected_images(plan: Plan, folder: Path) -> Path:
    """Draw the figure into a report's folder, unless it already shows the same.

    Returns:
        the path of the figure.

    Raises:
        Exception: any error of the data, of a user's strategy or of the disk.
    """
    path = folder / FIGURE_PATH
    configs = _visual_configs(plan)
    content_hash = hashlib.sha256(" ".join(configs).encode()).hexdigest()
    if _read_hash(path) == content_hash:
        return path
    config = next(iter(configs.values()))
    pairs = load_first_pairs(config.data, IMAGE_COUNT)
    if not pairs:
        raise TrialError(f"{config.data.source}: no image among its first rows")
    rows: list[list[GalleryCell]] = []
    for pair in pairs:
        cells = [GalleryCell(row=pair.id, title="image", image=pair.image, note=None)]
        for title, settings in _settings_by_title(configs.values()).items():
            cells.append(make_preview_cell(settings, pair, title, pairs, given=pair.rejected_image))
        rows += [
            cells[start : start + COLUMN_COUNT] for start in range(0, len(cells), COLUMN_COUNT)
        ]
    draw_rows(rows, path, metadata={_HASH_KEY: content_hash})
    return path


def _visual_configs(plan: Plan) -> dict[str, TrialConfig]:
    """Return the arms that use a rejected image, by the fingerprint of their first seed."""
    first_trials = (arm.trials[0] for arm in plan.arms)
    return {
        trial.fingerprint: trial.config
        for trial in first_trials
        if trial.config.objective.needs_rejected_image
    }


def _settings_by_title(configs: Iterable[TrialConfig]) -> dict[str, RejectedImageConfig]:
    """Return each strategy with its settings once, named by the settings that differ."""
    by_key: dict[str, RejectedImageConfig] = {}
    for config in configs:
        settings = config.rejected_image
        by_key.setdefault(f"{settings.strategy} {settings.settings.model_dump_json()}", settings)
    titles: dict[str, RejectedImageConfig] = {}
    for settings in by_key.values():
        same_strategy = [
            candidate for candidate in by_key.values() if candidate.strategy == settings.strategy
        ]
        titles["\n".join([settings.strategy, *_differing_settings(settings, same_strategy)])] = (
            settings
        )
    return titles


def _differing_settings(
    settings: RejectedImageConfig, same_strategy: Sequence[RejectedImageConfig]
) -> list[str]:
    values: list[Mapping[str, Any]] = [other.settings.model_dump() for other in same_strategy]
    own_values = settings.settings.model_dump()
    return [
        f"{key} {own_values[key]}"
        for key in own_values
        if any(value[key] != own_values[key] for value in values)
    ]


def _read_hash(figure: Path) -> str | None:
    """Return the hash of what a figure shows; None if it is missing or broken."""
    try:
        with Image.open(figure) as image:
            return image.info.get(_HASH_KEY)
    except OSError:
        return None
