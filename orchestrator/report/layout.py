"""Define the blocks of a report: tables, figures and texts in sections.

Contents are plain text; each writer (HTML, Markdown, LaTeX) escapes them.
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
    numeric: bool = True  # right-aligned


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell."""

    text: str
    below: str = ""  # a second, smaller line
    bold: bool = False
    tone: Tone = ""  # of a verdict


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table."""

    cells: tuple[Cell, ...]
    kind: RowKind = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its caption."""

    name: str  # name of its file and its anchor in the page
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as files."""

    name: str  # `figures/NAME.png`, and `.pdf` if there is one
    caption: str
    png: bytes = field(repr=False)
    has_pdf: bool = True


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """One answer to an item."""

    text: str
    score: str  # contribution to the metric: `1 of 3`


@dataclass(frozen=True, kw_only=True)
class ChangedItem:
    """An item that an arm and the baseline answer differently."""

    item: str
    seed: int
    prompt: str
    truth: str
    baseline: ShownAnswer
    arm: ShownAnswer
    change: float  # of the item's value, mean over seeds, in the shown unit
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
    """A paragraph or a list."""

    lines: tuple[str, ...]
    bulleted: bool = False


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """Plain text under a heading, collapsed where the format can do so."""

    title: str
    text: str


Block = Table | Picture | ChangedItems | TextBlock | Disclosure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    in_paper: bool = True  # whether the LaTeX document has it


def text_row(*texts: str | Cell, kind: RowKind = "") -> TableRow:
    """Return a table row of cells or texts."""
    cells = (cell if isinstance(cell, Cell) else Cell(text=cell) for cell in texts)
    return TableRow(cells=tuple(cells), kind=kind)


def make_columns(*titles: str, text: Sequence[int] = (0,)) -> tuple[Column, ...]:
    """Return numeric columns with these titles; those at the indices in `text` are textual."""
    return tuple(
        Column(title=title, numeric=index not in text) for index, title in enumerate(titles)
    )
