"""Define the blocks of a report: sections of tables, figures and texts.

Contents are plain text; each way of writing (HTML, Markdown, LaTeX) escapes them as it must.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "better", "worse", "same", "open"]
FIGURES = "figures"  # the folder of a report's figures

RowKind = Literal["", "untrained", "baseline", "published"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column's heading."""

    title: str
    numeric: bool = True  # set to the right


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell."""

    text: str
    below: str = ""  # a second, smaller line
    bold: bool = False
    tone: Tone = ""  # of a verdict


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A line of a table."""

    cells: tuple[Cell, ...]
    kind: RowKind = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with what it shows, in words."""

    name: str  # of its file and its place in the page
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as files."""

    name: str  # `figures/NAME.png`, and `.pdf` where there is one
    caption: str
    png: bytes = field(repr=False)
    has_pdf: bool = True


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """One answer to an item."""

    text: str
    score: str  # what it contributed: `1 of 3`


@dataclass(frozen=True, kw_only=True)
class ChangedItem:
    """An item that an arm answers otherwise than the baseline."""

    item: str
    seed: int
    prompt: str
    truth: str
    baseline: ShownAnswer
    arm: ShownAnswer
    change: float  # of the item's value, mean over seeds, in the metric's shown unit
    better: bool
    images: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)  # media type, content


@dataclass(frozen=True, kw_only=True)
class ChangedItems:
    """The items that changed most in one arm."""

    arm: str
    baseline: str
    metric: str
    unit: str
    items: tuple[ChangedItem, ...]


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """A paragraph, or a list of them."""

    lines: tuple[str, ...]
    bulleted: bool = False


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """Plain data behind a heading: folded away where the page can."""

    title: str
    text: str


Block = Table | Picture | ChangedItems | TextBlock | Disclosure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    in_paper: bool = True  # whether LaTeX has it


def text_row(*texts: str | Cell, kind: RowKind = "") -> TableRow:
    """Return a row of cells, given as texts where there is nothing more to them."""
    cells = (cell if isinstance(cell, Cell) else Cell(text=cell) for cell in texts)
    return TableRow(cells=tuple(cells), kind=kind)


def columns(*titles: str, text: Sequence[int] = (0,)) -> tuple[Column, ...]:
    """Return columns of figures; those at the places in `text` hold words."""
    return tuple(
        Column(title=title, numeric=place not in text) for place, title in enumerate(titles)
    )
