"""Reading again what a report has written."""

from __future__ import annotations

import csv
import io
import re


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def read_tables(text: str) -> list[list[dict[str, str]]]:
    """Return the tables of a Markdown text as rows by heading, escapes taken out."""
    found: list[list[dict[str, str]]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        if len(lines) > 2:
            head, _, *rows = [
                [_unescape_cell(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                for line in lines
            ]
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def _unescape_cell(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell.strip().replace("−", "-"))
