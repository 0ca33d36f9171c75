"""judge-humans: export blinded sheets, and import the replies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import load_plan, study_options, tracking_option
from orchestrator.commands.common.output import print_json, print_written
from orchestrator.commands.common.param_types import IntegerType, PathType, TextType

if TYPE_CHECKING:
    from orchestrator.human_eval.assignment import SheetKey
    from orchestrator.human_eval.judge import JudgeValues
    from orchestrator.human_eval.pairs import AnswerPool
    from orchestrator.plan.plan import Plan

_METRIC_OPTION = click.option(
    "--metric",
    type=TextType(),
    help="The judge's figure of an answer; default: the study's primary metric, if it belongs to "
    "the benchmark, else the benchmark's first.",
)
_BENCHMARK_OPTION = click.option(
    "--benchmark",
    type=TextType(),
    required=True,
    help="Benchmark of the items: NAME, or select/NAME.",
)


@click.group(
    "judge-humans", epilog="Example: chip-ablate judge-humans import encoder replies*.json"
)
def judge_humans() -> None:
    """Let people compare two arms' answers, or label answers, without knowing their arms."""


@judge_humans.command(
    "export",
    epilog="Example: chip-ablate judge-humans export encoder --arms 'dpo, frozen' 'chip, frozen' "
    "--benchmark shapes --annotators 3 --out sheets",
)
@study_options
@click.option(
    "--arms",
    type=TextType(),
    nargs=2,
    required=True,
    metavar="A B",
    help="Two arms; figures compare B with A.",
)
@_BENCHMARK_OPTION
@click.option(
    "--seed", type=IntegerType(0), default=0, show_default=True, help="Seed of the draws."
)
@click.option(
    "--items", type=IntegerType(1), default=50, show_default=True, help="Total number of items."
)
@click.option(
    "--annotators",
    type=IntegerType(1),
    default=1,
    show_default=True,
    help="Number of sheets to write.",
)
@click.option(
    "--overlap",
    type=IntegerType(0),
    help="Items that every annotator judges; default: a fifth of them.",
)
@click.option(
    "--out",
    type=PathType("folder"),
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
    from chip_core.utils.files import write_atomically, write_private_json
    from orchestrator.human_eval.assignment import draw_sheets
    from orchestrator.human_eval.pairs import load_answer_pool, load_item_images
    from orchestrator.human_eval.sheet import render_sheet
    from orchestrator.state.integrity import read_ledger

    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty: name a new folder")
    plan = load_plan(study, workdir=workdir, **changes)
    pool = load_answer_pool(
        plan, read_ledger(plan, workdir), workdir, arms=arms, benchmark=benchmark
    )
    key = draw_sheets(
        pool,
        study=plan.study.name,
        items=items,
        annotators=annotators,
        overlap=overlap,
        seed=seed,
    )
    images = load_item_images(
        pool, {entry.item for sheet in key.sheets for entry in sheet}, plan.data_paths
    )
    sheets = []
    for number in range(1, len(key.sheets) + 1):
        sheets.append(out / f"sheet-{number}.html")
        write_atomically(sheets[-1], render_sheet(key, number, pool, images))
    for file in (_keys_folder(workdir, key.study) / f"{key.export}.json", out / "key.json"):
        write_private_json(file, key.as_json())
    question_count = len({entry.item for sheet in key.sheets for entry in sheet})
    if as_json:
        print_json(
            {
                "export": key.export,
                "sheets": [str(path) for path in sheets],
                "key": str(out / "key.json"),
                "items": question_count,
                "pairs": key.pairs,
                "same": key.same,
            }
        )
        return
    click.echo(
        f"{question_count} items; of {key.pairs} pairs of answers {key.same} are the same and are "
        "not asked about"
    )
    for path in sheets:
        click.echo(f"written: {path}")
    click.echo(f"written: {out / 'key.json'} (keep it: it shows which arm gave which answer)")


@judge_humans.command(
    "import", epilog="Example: chip-ablate judge-humans import encoder replies-*.json"
)
@study_options
@click.argument("files", nargs=-1, required=True, type=PathType("file", exists=True))
@click.option(
    "--key",
    "key_file",
    type=PathType("file", exists=True),
    help="The export's key; default: the copy that the work directory keeps.",
)
@_METRIC_OPTION
@tracking_option
def import_replies(
    study: str,
    workdir: Path,
    as_json: bool,
    files: tuple[Path, ...],
    key_file: Path | None,
    metric: str | None,
    tracking_uri: str | None,
    **changes: Any,
) -> None:
    """Read the FILES that annotators saved; figures go to the report and to MLflow."""
    from chip_core.utils.errors import UserError
    from orchestrator.human_eval.comparison import build_comparison, comparison_to_json
    from orchestrator.human_eval.replies import find_sheet_key, read_replies
    from orchestrator.tracking.client import check_store

    plan = load_plan(study, workdir=workdir, **changes)
    check_store(workdir, tracking_uri)
    name = plan.study.name
    replies = read_replies(files)
    key = find_sheet_key(_keys_folder(workdir, name), key_file, replies[0].export, files)
    if key.study != name:
        raise UserError(f"{files[0]} belongs to study {key.study}, not to {name}: name that study")
    comparison = build_comparison(key, replies, _find_judge(plan, workdir, key, metric))
    figures = comparison_to_json(comparison)
    _publish_figures(figures, comparison.name, plan, workdir, tracking_uri, as_json=as_json)


@judge_humans.command(
    "draw",
    epilog="Example: chip-ablate judge-humans draw encoder --benchmark mmhal --items 60 "
    "--out labels.csv",
)
@study_options
@_BENCHMARK_OPTION
@_METRIC_OPTION
@click.option(
    "--arms",
    type=TextType(),
    multiple=True,
    metavar="ARM",
    help="Arm whose answers to draw; may be repeated; default: all arms.",
)
@click.option(
    "--items", type=IntegerType(1), default=60, show_default=True, help="Total number of items."
)
@click.option("--seed", type=IntegerType(0), default=0, show_default=True, help="Seed of the draw.")
@click.option("--out", type=PathType("file"), required=True, help="A new CSV file.")
def draw_answers(
    study: str,
    workdir: Path,
    as_json: bool,
    benchmark: str,
    metric: str | None,
    arms: tuple[str, ...],
    items: int,
    seed: int,
    out: Path,
    **changes: Any,
) -> None:
    """Write single answers of random items to a CSV whose column `label` people fill in."""
    from chip_core.utils.errors import UserError
    from chip_core.utils.files import write_atomically
    from orchestrator.human_eval.judge import load_judge_values
    from orchestrator.human_eval.labels import draw_labels
    from orchestrator.state.integrity import read_ledger

    if out.exists():
        raise UserError(f"--out: {out} already exists: name a new file")
    plan = load_plan(study, workdir=workdir, **changes)
    ledger = read_ledger(plan, workdir)
    judge = load_judge_values(plan, ledger, workdir, benchmark=benchmark, metric=metric)
    text, item_count = draw_labels(plan, ledger, workdir, judge, arms=arms, items=items, seed=seed)
    write_atomically(out, text)
    if as_json:
        print_json({"metric": judge.metric, "items": item_count, "written": str(out)})
        return
    click.echo(f"{item_count} items to label for {judge.metric}")
    click.echo(f"written: {out} (fill in the column `label`)")


@judge_humans.command(
    "labels",
    epilog="Example: chip-ablate judge-humans labels encoder labels.csv --benchmark mmhal",
)
@study_options
@click.argument("files", nargs=-1, required=True, type=PathType("file", exists=True))
@_BENCHMARK_OPTION
@_METRIC_OPTION
@tracking_option
def import_labels(
    study: str,
    workdir: Path,
    as_json: bool,
    files: tuple[Path, ...],
    benchmark: str,
    metric: str | None,
    tracking_uri: str | None,
    **changes: Any,
) -> None:
    """Correct a judge's figures by the labels in FILES; they go to the report and to MLflow."""
    from orchestrator.human_eval.judge import load_judge_values
    from orchestrator.human_eval.labels import compute_label_figures, labels_to_json, read_labels
    from orchestrator.state.integrity import read_ledger
    from orchestrator.tracking.client import check_store

    plan = load_plan(study, workdir=workdir, **changes)
    check_store(workdir, tracking_uri)
    ledger = read_ledger(plan, workdir)
    judge = load_judge_values(plan, ledger, workdir, benchmark=benchmark, metric=metric)
    figures = compute_label_figures(plan, judge, read_labels(files, plan, judge))
    _publish_figures(
        labels_to_json(figures), figures.name, plan, workdir, tracking_uri, as_json=as_json
    )


def _find_judge(
    plan: Plan, workdir: Path, key: SheetKey, metric: str | None
) -> tuple[JudgeValues, AnswerPool] | None:
    """Return a judge's values and the pairs of an export; None if the judge has none of them.

    Raises:
        UserError: a metric was named, and it has no values.
    """
    from chip_core.utils.errors import UserError
    from orchestrator.human_eval.judge import load_judge_values
    from orchestrator.human_eval.pairs import load_answer_pool
    from orchestrator.state.integrity import read_ledger

    try:
        ledger = read_ledger(plan, workdir)
        pool = load_answer_pool(plan, ledger, workdir, arms=key.arms, benchmark=key.benchmark)
        judge = load_judge_values(plan, ledger, workdir, benchmark=key.benchmark, metric=metric)
    except UserError:
        if metric is not None:
            raise
        return None
    has_same_trials = all(pool.trials.get(name) == trial for name, trial in key.trials.items())
    return (judge, pool) if has_same_trials else None


def _publish_figures(
    figures: dict[str, Any],
    name: str,
    plan: Plan,
    workdir: Path,
    tracking_uri: str | None,
    *,
    as_json: bool,
) -> None:
    """Add figures to the report and to MLflow, and print them."""
    from orchestrator.human_eval.comparison import write_figures
    from orchestrator.report.cached import refresh_report
    from orchestrator.report.sections.human import human_metrics
    from orchestrator.report.writers.files import artifact_folder, report_folder
    from orchestrator.tracking.attachments import StudyAttachment, attach_files

    folder = report_folder(workdir, plan.study.name)
    written = write_figures(figures, name, folder)
    attachments = [(file, artifact_folder(file, folder)) for file in written]
    attachments += refresh_report(plan, workdir)
    attachment = StudyAttachment(study=human_metrics(figures), files=attachments)
    note = attach_files(workdir, tracking_uri, plan.study.name, attachment)
    if as_json:
        print_json({**figures, "written": [str(path) for path in written], "note": note})
    else:
        section = next(path for path in written if path.suffix == ".md")
        print_written(section.read_text(encoding="utf-8"), written, note)


def _keys_folder(workdir: Path, study: str) -> Path:
    """Return the folder of a study's export keys: next to the report, not in it."""
    return workdir / "studies" / study / "human-keys"
