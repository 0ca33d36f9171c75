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

_MAX_ANSWER_LENGTH = 500  # characters; the page and the responses' file have the whole answer
#: Markup characters. An underscore between letters is none, nor is a bracket without an address
#: after it, nor a `<` before a space.
_SPECIAL = re.compile(r"([\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_]))")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
#: What starts a list, a heading, a quotation or a rule at the start of a line.
_LEADING = re.compile(r"^(?:(-{2}|[-+](?=\s|$)|[#>=])|(\d+)([.)])(?=\s|$))")


def render_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    study = report.summary.plan.study
    parts = [f"# {escape_markdown(study.name)}"]
    if study.question:
        parts.append(escape_markdown(study.question))
    parts.append(f"**{escape_markdown(report.answer)}**")
    parts += [render_section(section.title, section.blocks).strip() for section in report.sections]
    parts.append(f"As of {report.ended} UTC.")
    return "\n\n".join(parts) + "\n"


def render_section(title: str, blocks: Sequence[Block]) -> str:
    """Return one section of the report as Markdown."""
    parts = [
        f"## {escape_markdown(title)}",
        *(text for block in blocks for text in _render_block(block)),
    ]
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Escape text for Markdown, on one line."""
    line = " ".join(text.split())
    escaped = _TAG.sub("&lt;", _ENTITY.sub("&amp;", _SPECIAL.sub(r"\\\1", line)))
    return _LEADING.sub(lambda match: rf"{match[2] or ''}\{match[1] or match[3]}", escaped)


def _render_block(block: Block) -> list[str]:
    match block:
        case Table():
            return [_render_table(block), f"*{escape_markdown(block.caption)}*"]
        case Picture():
            address = f"{FIGURES}/{block.name}.png"
            return [
                f"![{escape_markdown(block.caption)}]({address})",
                f"*{escape_markdown(block.caption)}*",
            ]
        case ChangedItems():
            return [f"### {escape_markdown(block.arm)}", _render_changes(block)]
        case TextBlock():
            bullet = "- " if block.bulleted else ""
            return ["\n".join(bullet + escape_markdown(line) for line in block.lines)]
        case Disclosure():
            return []  # provenance.json has it


def _render_table(table: Table) -> str:
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_render_cell(cell) for cell in row.cells] for row in table.rows]
    return _join_rows([escape_markdown(column.title) for column in table.columns], rule, rows)


def _render_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    if cell.bold and text:
        text = f"**{text}**"
    return f"{text} ({escape_markdown(cell.below)})" if cell.below else text


def _render_changes(block: ChangedItems) -> str:
    head = ["item", "truth", f"{block.baseline}", f"{block.arm}", f"change ({block.unit})"]
    rows = [_change_cells(change) for change in block.items]
    return _join_rows([escape_markdown(title) for title in head], ["---"] * 4 + ["---:"], rows)


def _change_cells(change: ChangedItem) -> list[str]:
    question = f"{change.item}, seed {change.seed}: {change.prompt}"
    direction = "better" if change.better else "worse"
    return [
        _truncate(question),
        _truncate(change.truth),
        _render_answer(change.baseline),
        _render_answer(change.arm),
        escape_markdown(f"{change.change:+.1f}, {direction}"),
    ]


def _render_answer(answer: ShownAnswer) -> str:
    return f"{_truncate(answer.text)} ({escape_markdown(answer.score)})"


def _truncate(text: str) -> str:
    if len(text) <= _MAX_ANSWER_LENGTH:
        return escape_markdown(text)
    return f"{escape_markdown(text[:_MAX_ANSWER_LENGTH])}… ({len(text):,} characters)"


def _join_rows(head: Sequence[str], rule: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))
