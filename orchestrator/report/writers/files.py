"""Write all files of `studies/NAME/report/`."""

from __future__ import annotations

import json
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.files import write_atomically, write_bytes
from orchestrator.report.attachments import GIVEN
from orchestrator.report.build import Report
from orchestrator.report.layout import FIGURES
from orchestrator.report.writers.exports import arms_csv, effects_csv, values_csv
from orchestrator.report.writers.html import page
from orchestrator.report.writers.latex import bare_table, latex
from orchestrator.report.writers.markdown import markdown

PAGE = "report.html"
_FILES = (
    PAGE, "report.md", "report.tex", "table.tex", "report.csv", "values.csv", "effects.csv",
    "provenance.json",
)  # fmt: skip


def require_room_for_report(folder: Path) -> None:
    """Check that nothing is in the way of a report's files.

    Raises:
        UserError: a folder is where a file goes, or the other way round.
    """
    places = (folder, folder / FIGURES)
    blocked = [place for place in places if place.exists() and not place.is_dir()]
    files = [*(folder / name for name in _FILES), *(folder / FIGURES).glob("*.p*")]
    blocked += [file for file in files if file.is_dir()]
    if blocked:
        what = "is a folder" if blocked[0].is_dir() else "is no folder"
        raise UserError(
            f"{blocked[0]}: {what}, and a report goes there: move it away and give the same "
            "command again"
        )


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write a report into its folder, and return its files, the page first.

    Figures of an earlier report that this one does not have are removed. Those of other commands
    are left unchanged.
    """
    summary = report.summary
    texts = {
        PAGE: page(report),
        "report.md": markdown(report),
        "report.tex": latex(report),
        "table.tex": bare_table(report),
        "report.csv": arms_csv(summary),
        "values.csv": values_csv(summary),
        "effects.csv": effects_csv(summary),
        "provenance.json": json.dumps(report.provenance, indent=1, ensure_ascii=False) + "\n",
        **report.tables,
    }
    pictures = {f"{FIGURES}/{picture.name}.png": picture.png for picture in report.pictures}
    pictures |= {f"{FIGURES}/{name}.pdf": pdf for name, pdf in report.pdfs.items()}
    require_room_for_report(folder)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    for name, content in pictures.items():
        if Path(name).stem not in GIVEN:
            write_bytes(folder / name, content)
    for old in (folder / FIGURES).glob("*.p*"):
        if f"{FIGURES}/{old.name}" not in pictures and old.stem not in GIVEN:
            old.unlink()
    return [folder / name for name in (*texts, *sorted(pictures))]


def report_folder(workdir: Path, study: str) -> Path:
    """Return the folder of a study's report."""
    return workdir / "studies" / study / "report"


def artifact_folder(file: Path, report: Path) -> str:
    """Return the artifact folder of a report's file in a run."""
    return (Path("report") / file.parent.relative_to(report)).as_posix()
