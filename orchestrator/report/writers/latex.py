"""Write a report as a LaTeX document, and its first table separately.

The text is ASCII, so that any engine compiles it: a character without a command in LaTeX's own
fonts is written as its code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from orchestrator.report.build import Report
from orchestrator.report.layout import (
    FIGURES,
    Block,
    Cell,
    Picture,
    RowKind,
    Table,
    TableRow,
    TextBlock,
)

_ROWS_PER_PAGE = 40  # rows of a table on one page; longer tables are continued
_PREAMBLE = r"""\documentclass[11pt,a4paper]{article}
\usepackage[margin=2.2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\setlength{\parindent}{0pt}
\setlength{\parskip}{0.6em}
\renewcommand{\labelitemi}{$\bullet$}
% Tables and figures stay where they are: a long report's floats would be too many.
\makeatletter
\newcommand{\captionof}[1]{\def\@captype{#1}\caption}
\makeatother
\newenvironment{block}{\par\medskip\noindent\begin{minipage}{\linewidth}\centering
  \setlength{\belowcaptionskip}{6pt}}{\end{minipage}\par\medskip}
% A table that is wider than the page is made to fit it.
\newcommand{\fitted}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}
\newcommand{\stacked}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-0.2ex]{\footnotesize #2}\end{tabular}}
"""
_CHARACTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"{''}",
    "`": r"\textasciigrave{}", "\u2212": r"$-$", "±": r"$\pm$", "×": r"$\times$", "→": r"$\to$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "≤": r"$\le$", "≥": r"$\ge$", "…": r"\ldots{}",
    "–": "--", "—": "---", "†": r"$\dagger$", "‡": r"$\ddagger$", "·": r"$\cdot$", "°": r"$^\circ$",
    "“": "``", "”": "''", "‘": "`", "’": "'", "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ł": r"\l{}", "Ł": r"\L{}",
    "ı": r"\i{}", "§": r"\S{}", "\u00a0": "~",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu",
    "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "ς": "varsigma", "τ": "tau", "υ": "upsilon",
    "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta",
    "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi",
    "Ω": "Omega",
}  # fmt: skip
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=",
            "\u0306": "u", "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H",
            "\u030c": "v", "\u0323": "d", "\u0327": "c"}  # fmt: skip


def render_latex(report: Report) -> str:
    """Return the report as a LaTeX document."""
    study = report.summary.plan.study
    lines = [
        _PREAMBLE,
        rf"\title{{{escape_latex(study.name)}}}",
        rf"\date{{{escape_latex(report.ended)} UTC}}",
        r"\author{}",
        r"\begin{document}",
        r"\maketitle",
    ]
    if study.question:
        lines += [rf"\textit{{{escape_latex(study.question)}}}", ""]
    lines += [rf"\textbf{{{escape_latex(report.answer)}}}", ""]
    for section in report.sections:
        if section.in_paper:
            lines.append(rf"\section*{{{escape_latex(section.title)}}}")
            for block in section.blocks:
                lines += _render_block(block)
    return "\n".join([*lines, r"\end{document}", ""])


def render_first_table(report: Report) -> str:
    """Return the report's first table as a tabular, for documents that load booktabs."""
    tables = [
        block for section in report.sections for block in section.blocks if isinstance(block, Table)
    ]
    head = [
        f"% {_to_ascii(report.summary.plan.study.name)}: {_to_ascii(tables[0].caption)}",
        *(f"% {_to_ascii(note)}" for note in report.footnotes),
        r"% In the preamble: \usepackage{booktabs}",
        r"\providecommand{\stacked}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-0.2ex]"
        r"{\footnotesize #2}\end{tabular}}",
    ]
    return "\n".join([*head, *_render_tabular(tables[0], tables[0].rows)]) + "\n"


def escape_latex(text: str) -> str:
    """Escape text for LaTeX. Characters without a command become `[U+1F600]`."""
    normalized = unicodedata.normalize("NFD", " ".join(text.split()))
    parts: list[str] = []
    for character in normalized:
        if character in _ACCENTS and parts and re.fullmatch("[A-Za-z]", parts[-1]):
            letter = {"i": r"\i", "j": r"\j"}.get(parts[-1], parts[-1])
            parts[-1] = rf"\{_ACCENTS[character]}{{{letter}}}"
        else:
            parts.append(_escape_character(character))
    return "".join(parts)


def _escape_character(character: str) -> str:
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character in _GREEK:
        return rf"$\{_GREEK[character]}$"
    if " " <= character <= "~":
        return character
    return f"[U+{ord(character):04X}]"


def _to_ascii(text: str) -> str:
    """Return text for a LaTeX comment."""
    return " ".join(text.split()).encode("ascii", "replace").decode()


def _render_block(block: Block) -> Iterator[str]:
    match block:
        case Table():
            for start in range(0, len(block.rows), _ROWS_PER_PAGE):
                caption = escape_latex(block.caption) + (" (continued)" if start else "")
                yield r"\begin{block}"
                yield rf"\captionof{{table}}{{{caption}}}"
                yield r"\small\fitted{%"
                yield from _render_tabular(block, block.rows[start : start + _ROWS_PER_PAGE])
                yield from ("}", r"\end{block}")
        case Picture():
            yield from (
                r"\begin{block}",
                rf"\includegraphics[width=\linewidth,height=0.8\textheight,keepaspectratio]"
                rf"{{{FIGURES}/{block.name}.{'pdf' if block.has_pdf else 'png'}}}",
                rf"\captionof{{figure}}{{{escape_latex(block.caption)}}}",
                r"\end{block}",
            )
        case TextBlock(bulleted=False):
            yield from ("\n\n".join(escape_latex(line) for line in block.lines), "")
        case TextBlock():
            yield r"\begin{itemize}"
            yield from (rf"\item {{}}{escape_latex(line)}" for line in block.lines)
            yield r"\end{itemize}"


def _render_tabular(table: Table, rows: Sequence[TableRow]) -> Iterator[str]:
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    yield rf"\begin{{tabular}}{{{alignment}}}"
    yield r"\toprule"
    yield " & ".join(escape_latex(column.title) for column in table.columns) + r" \\"
    yield r"\midrule"
    for row in rows:
        yield " & ".join(_render_cell(cell, row.kind) for cell in row.cells) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}%"


def _render_cell(cell: Cell, kind: RowKind) -> str:
    # After `\\`, a bracket would be read as the space before the next row.
    text = escape_latex(cell.text)
    text = f"{{}}{text}" if text.startswith(("[", "*")) else text
    if kind == "published" and text:
        text = rf"\textit{{{text}}}"
    if cell.bold and text:
        text = rf"\textbf{{{text}}}"
    return rf"\stacked{{{text}}}{{{escape_latex(cell.below)}}}" if cell.below else text
