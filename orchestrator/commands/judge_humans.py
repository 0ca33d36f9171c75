"""judge-humans: export blinded sheets, and import the replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.commands.common.options import planned, study_options
from orchestrator.commands.common.output import print_json
from orchestrator.commands.common.param_types import Location, Text, Whole

_TRACKING = click.option(
    "--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db."
)


@click.group(
    "judge-humans", epilog="Example: chip-ablate judge-humans import encoder replies*.json"
)
def judge_humans() -> None:
    """Let people compare the answers of two arms, without knowing which is which."""


@judge_humans.command(
    "export",
    epilog="Example: chip-ablate judge-humans export encoder --arms 'dpo, frozen' 'chip, frozen' "
    "--benchmark shapes --annotators 3 --out sheets",
)
@study_options
@click.option(
    "--arms",
    type=Text(),
    nargs=2,
    required=True,
    metavar="A B",
    help="Two arms; figures are of B against A.",
)
@click.option("--benchmark", type=Text(), required=True, help="Whose items: NAME, or select/NAME.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Of the draws.")
@click.option("--items", type=Whole(1), default=50, show_default=True, help="Items in all.")
@click.option("--annotators", type=Whole(1), default=1, show_default=True, help="Sheets to write.")
@click.option(
    "--overlap",
    type=Whole(0),
    help="Items that every annotator judges; default: a fifth of them.",
)
@click.option(
    "--out",
    type=Location("folder"),
    required=True,
    help="A new folder for the sheets and the key.",
)
def export_sheets(
    study: str,
    workdir: Path,
    as_json: bool,
    arms: tuple[str, str],
    benchmark: str,
    seed: int,
    items: int,
    annotators: int,
    overlap: int | None,
    out: Path,
    **changes: Any,
) -> None:
    """Write one blinded HTML sheet for each annotator, and the key that stays with you."""
    from chip_core.utils.errors import UserError
    from chip_core.utils.files import write_atomically
    from chip_core.utils.private import write_private_json
    from orchestrator.human_eval.assignment import draw_sheets
    from orchestrator.human_eval.pairs import answer_pool, item_images
    from orchestrator.human_eval.sheet import sheet_page
    from orchestrator.state.integrity import ledger_of

    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty: name a new folder")
    made = planned(study, workdir=workdir, **changes)
    pool = answer_pool(made, ledger_of(made, workdir), workdir, arms=arms, benchmark=benchmark)
    key = draw_sheets(
        pool,
        study=made.study.name,
        items=items,
        annotators=annotators,
        overlap=overlap,
        seed=seed,
    )
    images = item_images(pool, {entry.item for sheet in key.sheets for entry in sheet}, made.places)
    sheets = []
    for number in range(1, len(key.sheets) + 1):
        sheets.append(out / f"sheet-{number}.html")
        write_atomically(sheets[-1], sheet_page(key, number, pool, images))
    for file in (_keys(workdir, key.study) / f"{key.export}.json", out / "key.json"):
        write_private_json(file, key.as_json())
    asked = len({entry.item for sheet in key.sheets for entry in sheet})
    if as_json:
        print_json(
            {
                "export": key.export,
                "sheets": [str(path) for path in sheets],
                "key": str(out / "key.json"),
                "items": asked,
                "pairs": key.pairs,
                "same": key.same,
            }
        )
        return
    click.echo(
        f"{asked} items; of {key.pairs} pairs of answers {key.same} are the same and not asked"
    )
    for path in sheets:
        click.echo(f"written: {path}")
    click.echo(f"written: {out / 'key.json'} (keep it: it says which answer is whose)")


@judge_humans.command(
    "import", epilog="Example: chip-ablate judge-humans import encoder replies-*.json"
)
@study_options
@click.argument("files", nargs=-1, required=True, type=Location("file", exists=True))
@click.option(
    "--key",
    "key_file",
    type=Location("file", exists=True),
    help="The export's key; default: the copy that the work directory keeps.",
)
@_TRACKING
def import_replies(
    study: str,
    workdir: Path,
    as_json: bool,
    files: tuple[Path, ...],
    key_file: Path | None,
    tracking_uri: str | None,
    **changes: Any,
) -> None:
    """Read the FILES that annotators saved; figures go to the report and to MLflow."""
    from chip_core.utils.errors import UserError
    from orchestrator.human_eval.comparison import as_json as comparison_json
    from orchestrator.human_eval.comparison import compare, markdown, metrics, write_comparison
    from orchestrator.human_eval.replies import find_key, read_replies
    from orchestrator.report.cached import refresh_report
    from orchestrator.report.writers.files import artifact_folder, report_folder
    from orchestrator.tracking.attachments import StudyAttachment, attach_files
    from orchestrator.tracking.client import check_store

    made = planned(study, workdir=workdir, **changes)
    check_store(workdir, tracking_uri)
    name = made.study.name
    replies = read_replies(files)
    key = find_key(_keys(workdir, name), key_file, replies[0].export, files)
    if key.study != name:
        raise UserError(f"{files[0]} is of study {key.study}, not of {name}: name that study")
    comparison = compare(key, replies)
    folder = report_folder(workdir, name)
    written = write_comparison(comparison, folder)
    shown = [(file, artifact_folder(file, folder)) for file in written]
    shown += refresh_report(made, workdir)
    attached = StudyAttachment(study=metrics(comparison), files=shown)
    said = attach_files(workdir, tracking_uri, name, attached)
    if as_json:
        paths = [str(path) for path in written]
        print_json({**comparison_json(comparison), "written": paths, "note": said})
        return
    click.echo(markdown(comparison))
    for path in written:
        click.echo(f"written: {path}")
    if said is not None:
        click.echo(said)


def _keys(workdir: Path, study: str) -> Path:
    """Return where a study keeps the keys of its exports: beside the report, not in it."""
    return workdir / "studies" / study / "human-keys"
