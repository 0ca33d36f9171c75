"""Write a report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.report.build import Report
from orchestrator.report.layout import (
    FIGURES,
    Block,
    Cell,
    ChangedItem,
    ChangedItems,
    Disclosure,
    Picture,
    ShownAnswer,
    Table,
    TextBlock,
)

_LONGEST_ANSWER = 500  # characters; the page and the responses' file have the whole answer
#: Markup characters. An underscore between letters is none, nor is a bracket without an address
#: after it, nor a `<` before a space.
_SPECIAL = re.compile(r"([\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_]))")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
#: What starts a list, a heading, a quotation or a rule at the start of a line.
_LEADING = re.compile(r"^(?:(-{2}|[-+](?=\s|$)|[#>=])|(\d+)([.)])(?=\s|$))")


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    study = report.summary.plan.study
    parts = [f"# {escape(study.name)}"]
    if study.question:
        parts.append(escape(study.question))
    parts.append(f"**{escape(report.answer)}**")
    parts += [section_text(section.title, section.blocks).strip() for section in report.sections]
    parts.append(f"As of {report.ended} UTC.")
    return "\n\n".join(parts) + "\n"


def section_text(title: str, blocks: Sequence[Block]) -> str:
    """Return one section of the report as Markdown."""
    parts = [f"## {escape(title)}", *(text for block in blocks for text in _block(block))]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Escape text for Markdown, on one line."""
    flat = " ".join(text.split())
    plain = _TAG.sub("&lt;", _ENTITY.sub("&amp;", _SPECIAL.sub(r"\\\1", flat)))
    return _LEADING.sub(lambda found: rf"{found[2] or ''}\{found[1] or found[3]}", plain)


def _block(block: Block) -> list[str]:
    match block:
        case Table():
            return [_table(block), f"*{escape(block.caption)}*"]
        case Picture():
            address = f"{FIGURES}/{block.name}.png"
            return [f"![{escape(block.caption)}]({address})", f"*{escape(block.caption)}*"]
        case ChangedItems():
            return [f"### {escape(block.arm)}", _changes(block)]
        case TextBlock():
            bullet = "- " if block.bulleted else ""
            return ["\n".join(bullet + escape(line) for line in block.lines)]
        case Disclosure():
            return []  # provenance.json has it


def _table(table: Table) -> str:
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_cell(cell) for cell in row.cells] for row in table.rows]
    return _lines([escape(column.title) for column in table.columns], rule, rows)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.bold and text:
        text = f"**{text}**"
    return f"{text} ({escape(cell.below)})" if cell.below else text


def _changes(block: ChangedItems) -> str:
    head = ["item", "truth", f"{block.baseline}", f"{block.arm}", f"change ({block.unit})"]
    rows = [_change(change) for change in block.items]
    return _lines([escape(title) for title in head], ["---"] * 4 + ["---:"], rows)


def _change(change: ChangedItem) -> list[str]:
    asked = f"{change.item}, seed {change.seed}: {change.prompt}"
    way = "better" if change.better else "worse"
    return [
        _cut(asked),
        _cut(change.truth),
        _answered(change.baseline),
        _answered(change.arm),
        escape(f"{change.change:+.1f}, {way}"),
    ]


def _answered(answer: ShownAnswer) -> str:
    return f"{_cut(answer.text)} ({escape(answer.score)})"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_ANSWER:
        return escape(text)
    return f"{escape(text[:_LONGEST_ANSWER])}… ({len(text):,} characters)"


def _lines(head: Sequence[str], rule: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))
