"""Read what an objective needs of a row beyond image, prompt, chosen and rejected.

Every format may have these columns: `other`, a third response; `second_image` (or `second_images`)
and `second_prompt`; and the objects of `objectives.parts.COLUMNS`. They are read only if they are
needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chip_core.config.trial import DataConfig
from chip_core.data.formats.base import (
    SECOND_IMAGE_COLUMNS,
    RawRow,
    find_first_image,
    parse_json_cell,
    read_text_cell,
    strip_image_placeholder,
)
from chip_core.data.formats.trl import parse_response
from chip_core.data.rows import ImageRef, PreferenceTexts, RowError, check_text
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.parts import COLUMNS
from chip_core.utils.errors import to_printable

#: A number, or one for each sentence of a response, in order.
Score = float | tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class RowRequirements:
    """What an objective needs of each row."""

    other: bool = False
    second_image: bool = False
    columns: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The columns needed."""
        return [
            *(["other"] if self.other else []),
            *(["second_image"] if self.second_image else []),
            *self.columns,
        ]


@dataclass(frozen=True, kw_only=True)
class ExtraCells:
    """The values of these columns in a row."""

    other: str | None = None
    second_image: ImageRef | None = None
    second_prompt: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)  # `COLUMN/KEY`


def row_requirements(objective: ObjectiveConfig) -> RowRequirements:
    """Return what an objective needs of each row."""
    return RowRequirements(
        other=objective.needs_third_response,
        second_image=objective.reads_image("second_image"),
        columns=objective.fields,
    )


def find_objective_problem(data: DataConfig, objective: ObjectiveConfig) -> str | None:
    """Return why a source cannot have what an objective needs; None if it may have it."""
    names = row_requirements(objective).names
    if not names or data.source != "shapes":
        return None
    return (
        f"{objective.preset} reads {', '.join(names)} of each row, and the embedded world's pairs "
        "have none: name a data.source whose rows have"
    )


def parse_extra_cells(raw: RawRow, requirements: RowRequirements) -> ExtraCells:
    """Return what is needed of a row.

    Raises:
        RowError: it is missing or invalid.
    """
    other = second_prompt = None
    second_image: ImageRef | None = None
    if requirements.other:
        other = _parse_third_response(raw)
        check_text("other", other)
    if requirements.second_image:
        second_image = find_first_image(raw, *SECOND_IMAGE_COLUMNS)
        if second_image == ImageRef():
            raise RowError("no second_image, which the objective reads")
        if raw.get("second_prompt") is not None:
            second_prompt = strip_image_placeholder(read_text_cell(raw, "second_prompt"))
            check_text("second_prompt", second_prompt)
    scores = {
        f"{column}/{key}" if key else column: value
        for column in requirements.columns
        for key, value in _parse_scores(raw, column).items()
    }
    return ExtraCells(
        other=other, second_image=second_image, second_prompt=second_prompt, scores=scores
    )


def _parse_third_response(raw: RawRow) -> str:
    """Return the third response: a text, or a conversation of one message."""
    if raw.get("other") is None:
        raise RowError("no other, a third response, which the objective reads")
    return parse_response(raw, "other")


def check_sentences(texts: PreferenceTexts, extra: ExtraCells) -> None:
    """Check that numbers per sentence belong to a row's own sentences, in order.

    Raises:
        RowError: a sentence is not in its response, or out of order.
    """
    for name, value in extra.scores.items():
        if isinstance(value, float):
            continue
        column, _, key = name.partition("/")
        response = COLUMNS[column][key]
        text = extra.other if response == "other" else getattr(texts, str(response))
        find_sentence_ends(text or "", [sentence for sentence, _ in value], f"{column}.{key}")


def find_sentence_ends(text: str, sentences: Sequence[str], name: str) -> list[int]:
    """Return the end position of each sentence of a response.

    Args:
        text: the response.
        sentences: of it, in order.
        name: the column's name in messages.

    Raises:
        RowError: one is not there.
    """
    ends, end = [], 0
    for sentence in sentences:
        start = text.find(sentence.strip(), end)
        if start < 0:
            raise RowError(
                f"{name}: '{to_printable(sentence[:40])}' is not the next sentence of its response"
            )
        end = start + len(sentence.strip())
        ends.append(end)
    return ends


def _parse_scores(raw: RawRow, column: str) -> dict[str, Score]:
    cell = raw.get(column)
    if column not in COLUMNS:
        return {"": _parse_number(cell, column)}
    if isinstance(cell, str):
        cell = parse_json_cell(cell, column)
    if not isinstance(cell, dict):
        problem = "no" if cell is None else f"{type(cell).__name__} in"
        example = json.dumps({key: "…" for key in COLUMNS[column]}, ensure_ascii=False)
        raise RowError(f"{problem} {column}, which the objective reads: write {example}")
    scores: dict[str, Score] = {}
    for key, response in COLUMNS[column].items():
        value = cell.get(key)
        if response is None:
            scores[key] = _parse_number(value, f"{column}.{key}")
        elif isinstance(value, list) and value:
            scores[key] = tuple(_parse_sentence(entry, f"{column}.{key}") for entry in value)
        else:
            raise RowError(f"{column}.{key} is not a list of [sentence, number] of {response}")
    return scores


def _parse_sentence(entry: Any, name: str) -> tuple[str, float]:
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise RowError(f"{name} has an entry that is not [sentence, number]")
    return entry[0], _parse_number(entry[1], name)


def _parse_number(value: Any, name: str) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # JSON's integers are unbounded
            number = float(value)
    if not math.isfinite(number):
        raise RowError(f"{name} is {'missing' if value is None else 'not a finite number'}")
    return number
