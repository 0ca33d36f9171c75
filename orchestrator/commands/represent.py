"""represent: measure models' representations of images and descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator.commands.common.options import (
    is_on_command_line,
    load_plan,
    study_options,
    tracking_option,
)
from orchestrator.commands.common.output import print_json, print_written
from orchestrator.commands.common.param_types import IntegerType, PathType, TextType

if TYPE_CHECKING:
    from chip_core.representation.geometry import IntervalEstimate
    from orchestrator.plan.plan import Arm, Trial
    from orchestrator.representation.measure import ModelSource
    from orchestrator.representation.results import RepresentationResults
    from orchestrator.tracking.attachments import StudyAttachment

#: Options that apply to a study only.
_STUDY_OPTIONS = {
    "recipe": "--recipe", "seeds": "--seeds", "overrides": "--set", "workdir": "--workdir",
    "benchmark_data": "--benchmark-data", "judge_replies": "--judge-replies",
    "tracking_uri": "--tracking-uri",
}  # fmt: skip


@click.command(epilog="Example: chip-ablate represent encoder --pool last")
@study_options
@click.option(
    "--descriptions",
    "set_name",
    type=TextType(),
    default="shapes",
    show_default=True,
    metavar="FILE",
    help="JSON lines with image, true and hallucinated; shapes: scenes of the embedded world.",
)
@click.option(
    "--items",
    type=IntegerType(2),
    default=150,
    show_default=True,
    help="Maximum number of items of the set.",
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "last"]),
    default="mean",
    show_default=True,
    help="How to pool over an image's or a description's tokens.",
)
@click.option(
    "--layer",
    type=IntegerType(),
    default=-1,
    show_default=True,
    help="Layer of the states; 0: the embeddings, -1: the last layer.",
)
@click.option("--alone", is_flag=True, help="Read descriptions without their image and prompt.")
@click.option(
    "--out",
    type=PathType("folder"),
    help="Folder for figure and table; a study's are also in its report.",
)
@tracking_option
def represent(
    study: str,
    workdir: Path,
    as_json: bool,
    set_name: str,
    items: int,
    pool: Literal["mean", "last"],
    layer: int,
    alone: bool,
    out: Path | None,
    tracking_uri: str | None,
    **changes: Any,
) -> None:
    """Measure a model's representations of images, true and hallucinated descriptions.

    STUDY is a study, all of whose trained models are read, or a model's folder or hub name.
    """
    from chip_core.representation.described import read_described_images
    from chip_core.representation.states import Reading
    from orchestrator.report.cached import refresh_report
    from orchestrator.report.writers.files import artifact_folder, report_folder
    from orchestrator.representation.measure import list_sources, read_models
    from orchestrator.representation.results import results_json as found_json
    from orchestrator.representation.results import results_markdown, write_results
    from orchestrator.state.integrity import read_ledger
    from orchestrator.tracking.attachments import attach_files
    from orchestrator.tracking.client import check_store

    reading = Reading(pool=pool, layer=layer, alone=alone)
    described_images = read_described_images(set_name, items)
    plan, missing = None, list[str]()
    if _is_model(study):
        sources = [_model_source(study)]
        if out is None:
            raise click.UsageError("--out: name a folder for the model's figure")
        _check_no_study_options(study)
    else:
        plan = load_plan(study, workdir=workdir, **changes)
        check_store(workdir, tracking_uri)
        sources, missing = list_sources(plan, read_ledger(plan, workdir), workdir)
    results, model_figures = read_models(
        sources,
        described_images,
        set_name=set_name,
        reading=reading,
        missing=missing,
        report_progress=_print_progress,
    )
    written = [] if out is None else write_results(results, out)
    note = None
    if plan is not None:
        folder = report_folder(workdir, plan.study.name)
        files = write_results(results, folder)
        written += files
        attachment = _make_attachment(results, sources, model_figures)
        attachment.files.extend((file, artifact_folder(file, folder)) for file in files)
        attachment.files.extend(refresh_report(plan, workdir))
        note = attach_files(workdir, tracking_uri, plan.study.name, attachment)
    if as_json:
        paths = [str(path) for path in written]
        print_json({**found_json(results), "written": paths, "note": note})
    else:
        print_written(results_markdown(results), written, note)


def _is_model(name: str) -> bool:
    """Return whether a name is a model (the embedded one, a folder or a hub name), not a study."""
    from chip_core.utils.errors import ConfigError
    from orchestrator.study.load import find_study

    path = Path(name).expanduser()
    try:
        find_study(name)
    except ConfigError:
        return name == "shapes" or path.is_dir() or ("/" in name and path.suffix != ".yaml")
    return False


def _check_no_study_options(model: str) -> None:
    """Refuse options on a study if a model is given."""
    for name, option in _STUDY_OPTIONS.items():
        if is_on_command_line(name):
            raise click.UsageError(f"{option} is for studies, but {model} is a model: leave it out")


def _model_source(name: str) -> ModelSource:
    from chip_core.config.trial import ModelConfig
    from orchestrator.representation.measure import ModelSource

    return ModelSource(row=name, model=ModelConfig(path=name))


def _make_attachment(
    results: RepresentationResults,
    sources: Sequence[ModelSource],
    model_figures: Mapping[int, Mapping[str, IntervalEstimate]],
) -> StudyAttachment:
    """Return figures to attach to a study's runs: trials' own figures, arms' with intervals."""
    from orchestrator.representation.results import tracker_metrics
    from orchestrator.tracking.attachments import StudyAttachment

    base: Mapping[str, float] = {}
    arms: dict[str, tuple[Arm, Mapping[str, float]]] = {}
    trials: list[tuple[Arm, Trial, Mapping[str, float]]] = []
    rows = {row.name: row.figures for row in results.rows}
    for index, source in enumerate(sources):
        if source.arm is None or source.trial is None:
            base = tracker_metrics(results, model_figures[index], intervals=True)
            continue
        trials.append(
            (
                source.arm,
                source.trial,
                tracker_metrics(results, model_figures[index], intervals=False),
            )
        )
        arm_metrics = tracker_metrics(results, rows[source.arm.name], intervals=True)
        arms[source.arm.name] = (source.arm, arm_metrics)
    return StudyAttachment(base=base, arms=arms, trials=trials)


def _print_progress(name: str, done: int, total: int) -> None:
    if done == total:
        click.echo(f"{name}: {total} items", err=True)
