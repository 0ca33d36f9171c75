"""Read what other commands wrote into a report's folder.

A report includes whatever it finds there. Files that cannot be read are left out and named in the
report; they do not make it fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.utils.files import read_checksummed
from orchestrator.plan.plan import Plan
from orchestrator.report.layout import FIGURES, Block, Picture, Section, TextBlock
from orchestrator.report.sections.human import CSV_COLUMNS as HUMAN_COLUMNS
from orchestrator.report.sections.human import human_blocks, human_lines
from orchestrator.report.sections.representation import CSV_COLUMNS as REPRESENTATION_COLUMNS
from orchestrator.report.sections.representation import representation_blocks, representation_lines
from orchestrator.report.writers.exports import format_csv

#: Folder of human judgements in a study's report folder.
HUMANS_FOLDER = "humans"
_GALLERY = "rejected-images"
_REPRESENTATIONS = {
    "representation": "Representation",
    "representation-alone": "Representation of descriptions alone",
}
#: Names of the figures that other commands draw into the report's folder.
ATTACHED_FIGURES = (_GALLERY, *_REPRESENTATIONS)

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Attachments:
    """Sections and tables made from the attachments."""

    sections: tuple[Section, ...]
    tables: Mapping[str, str]  # file name -> CSV


def find_attachments(folder: Path, plan: Plan) -> Attachments:
    """Return the attachments in a report's folder."""
    sections = []
    tables: dict[str, str] = {}
    gallery = _find_picture(
        folder, _GALLERY, "Some training images after each strategy and setting."
    )
    if gallery is not None:
        sections.append(Section(name=_GALLERY, title="Rejected images", blocks=(gallery,)))
    for name, title in _REPRESENTATIONS.items():
        blocks = _representation_blocks(folder, name, plan, tables)
        if blocks:
            sections.append(Section(name=name, title=title, blocks=tuple(blocks)))
    blocks = _human_eval_blocks(folder / HUMANS_FOLDER, plan, tables)
    if blocks:
        sections.append(Section(name=HUMANS_FOLDER, title="Human evaluation", blocks=tuple(blocks)))
    return Attachments(sections=tuple(sections), tables=tables)


def _representation_blocks(
    folder: Path, name: str, plan: Plan, tables: dict[str, str]
) -> list[Block]:
    caption = "Hidden representations of images, true and hallucinated descriptions."
    picture = _find_picture(folder, name, caption)
    if picture is None:
        return []
    file = folder / f"{name}.json"
    if not file.exists():
        return [picture]

    def read(data: JsonObject) -> list[Block]:
        trials = {
            trial: fingerprint
            for row in data["rows"]
            for trial, fingerprint in row["trials"].items()
        }
        blocks = representation_blocks(data, picture.png, name)
        blocks += _stale_blocks(trials, plan, "chip-ablate represent")
        tables[f"{name}.csv"] = format_csv(REPRESENTATION_COLUMNS, representation_lines(data, name))
        return blocks

    blocks = _read_blocks(file, read)
    return blocks if any(isinstance(block, Picture) for block in blocks) else [picture, *blocks]


def _human_eval_blocks(folder: Path, plan: Plan, tables: dict[str, str]) -> list[Block]:
    blocks: list[Block] = []
    lines: list[Sequence[Any]] = []

    def read(data: JsonObject) -> list[Block]:
        command = "chip-ablate judge-humans export"
        new_blocks = [*human_blocks(data), *_stale_blocks(data["trials"], plan, command)]
        lines.extend(human_lines(data))
        return new_blocks

    for file in sorted(folder.glob("*.json")):
        blocks += _read_blocks(file, read)
    if lines:
        tables["humans.csv"] = format_csv(HUMAN_COLUMNS, lines)
    return blocks


def _read_blocks(file: Path, make_blocks: Callable[[JsonObject], list[Block]]) -> list[Block]:
    """Return the blocks made from a file, or one line of text if the file is broken."""
    try:
        return make_blocks(read_checksummed(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return [
            TextBlock(lines=(f"{file.name} is from another version or broken: make it again.",))
        ]


def _stale_blocks(trials: Mapping[str, str], plan: Plan, command: str) -> list[Block]:
    """Return a note if figures were made from trials that are not in the report."""
    current = {trial.name: trial.fingerprint for trial in plan.trials}
    stale_names = sorted(
        name for name, fingerprint in trials.items() if current.get(name) != fingerprint
    )
    if not stale_names:
        return []
    return [
        TextBlock(
            lines=(
                f"Made from other trainings than this report's ({'; '.join(stale_names)}): the "
                f"study has changed since. `{command}` makes them again.",
            )
        )
    ]


def _find_picture(folder: Path, name: str, caption: str) -> Picture | None:
    file = folder / FIGURES / f"{name}.png"
    if not file.is_file():
        return None
    has_pdf = file.with_suffix(".pdf").exists()
    return Picture(name=name, caption=caption, png=file.read_bytes(), has_pdf=has_pdf)
