"""Write all files of `studies/NAME/report/`."""

from __future__ import annotations

import json
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.files import write_atomically, write_bytes
from orchestrator.report.attachments import ATTACHED_FIGURES
from orchestrator.report.build import Report
from orchestrator.report.layout import FIGURES
from orchestrator.report.writers.exports import arms_csv, effects_csv, values_csv
from orchestrator.report.writers.html import render_page
from orchestrator.report.writers.latex import render_first_table, render_latex
from orchestrator.report.writers.markdown import render_markdown

PAGE_FILE = "report.html"
_FILES = (
    PAGE_FILE, "report.md", "report.tex", "table.tex", "report.csv", "values.csv", "effects.csv",
    "provenance.json",
)  # fmt: skip


def check_report_folder(folder: Path) -> None:
    """Check that nothing is in the way of a report's files.

    Raises:
        UserError: a folder is where a file goes, or the other way round.
    """
    folders = (folder, folder / FIGURES)
    blocked = [path for path in folders if path.exists() and not path.is_dir()]
    files = [*(folder / name for name in _FILES), *(folder / FIGURES).glob("*.p*")]
    blocked += [file for file in files if file.is_dir()]
    if blocked:
        problem = "is a folder" if blocked[0].is_dir() else "is not a folder"
        raise UserError(
            f"{blocked[0]}: {problem}, but a report must be written there: move it away and run "
            "the same command again"
        )


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write a report into its folder, and return its files, the page first.

    Figures of an earlier report that this one does not have are removed. Those of other commands
    are left unchanged.
    """
    summary = report.summary
    texts = {
        PAGE_FILE: render_page(report),
        "report.md": render_markdown(report),
        "report.tex": render_latex(report),
        "table.tex": render_first_table(report),
        "report.csv": arms_csv(summary),
        "values.csv": values_csv(summary),
        "effects.csv": effects_csv(summary),
        "provenance.json": json.dumps(report.provenance, indent=1, ensure_ascii=False) + "\n",
        **report.tables,
    }
    pictures = {f"{FIGURES}/{picture.name}.png": picture.png for picture in report.pictures}
    pictures |= {f"{FIGURES}/{name}.pdf": pdf for name, pdf in report.pdfs.items()}
    check_report_folder(folder)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    for name, content in pictures.items():
        if Path(name).stem not in ATTACHED_FIGURES:
            write_bytes(folder / name, content)
    for stale_file in (folder / FIGURES).glob("*.p*"):
        if (
            f"{FIGURES}/{stale_file.name}" not in pictures
            and stale_file.stem not in ATTACHED_FIGURES
        ):
            stale_file.unlink()
    return [folder / name for name in (*texts, *sorted(pictures))]


def report_folder(workdir: Path, study: str) -> Path:
    """Return the folder of a study's report."""
    return workdir / "studies" / study / "report"


def artifact_folder(file: Path, report: Path) -> str:
    """Return the artifact folder of a report's file in a run."""
    return (Path("report") / file.parent.relative_to(report)).as_posix()
