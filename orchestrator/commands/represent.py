"""represent: measure where models put images and descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator.commands.common.options import planned, study_options
from orchestrator.commands.common.output import print_json
from orchestrator.commands.common.param_types import Location, Text, Whole

if TYPE_CHECKING:
    from chip_core.representation.geometry import Figure
    from orchestrator.plan.plan import Arm, Trial
    from orchestrator.representation.measure import ModelSource
    from orchestrator.representation.results import RepresentationResults
    from orchestrator.tracking.attachments import StudyAttachment

#: Options that apply to a study only.
_OF_STUDY = {
    "recipe": "--recipe", "seeds": "--seeds", "overrides": "--set", "workdir": "--workdir",
    "benchmark_data": "--benchmark-data", "judge_replies": "--judge-replies",
    "tracking_uri": "--tracking-uri",
}  # fmt: skip


@click.command(epilog="Example: chip-ablate represent encoder --pool last")
@study_options
@click.option(
    "--descriptions",
    "set_name",
    type=Text(),
    default="shapes",
    show_default=True,
    metavar="FILE",
    help="JSON lines with image, true and hallucinated; shapes: scenes of the embedded world.",
)
@click.option("--items", type=Whole(2), default=150, show_default=True, help="Of the set, at most.")
@click.option(
    "--pool",
    type=click.Choice(["mean", "last"]),
    default="mean",
    show_default=True,
    help="Over an image's or a description's tokens.",
)
@click.option(
    "--layer",
    type=Whole(),
    default=-1,
    show_default=True,
    help="Whose states: 0 the embeddings, -1 the last layer's.",
)
@click.option("--alone", is_flag=True, help="Read descriptions without their image and prompt.")
@click.option(
    "--out",
    type=Location("folder"),
    help="Where figure and table go; a study's go into its report, too.",
)
@click.option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db.")
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
    """Show where a model puts images, true descriptions and hallucinated ones.

    STUDY is a study, all of whose trained models are read, or a model's folder or hub name.
    """
    from chip_core.representation.described import read_described_images
    from chip_core.representation.states import Reading
    from orchestrator.report.cached import refresh_report
    from orchestrator.report.writers.files import artifact_folder, report_folder
    from orchestrator.representation.measure import read_models, study_sources
    from orchestrator.representation.results import as_json as found_json
    from orchestrator.representation.results import markdown, write_represented
    from orchestrator.state.integrity import ledger_of
    from orchestrator.tracking.attachments import attach_files
    from orchestrator.tracking.client import check_store

    reading = Reading(pool=pool, layer=layer, alone=alone)
    described = read_described_images(set_name, items)
    made, missing = None, list[str]()
    if _is_model(study):
        sources = [_model_source(study)]
        if out is None:
            raise click.UsageError("--out: name a folder for the model's figure")
        _check_of_study(study)
    else:
        made = planned(study, workdir=workdir, **changes)
        check_store(workdir, tracking_uri)
        sources, missing = study_sources(made, ledger_of(made, workdir), workdir)
    found, own = read_models(
        sources,
        described,
        set_name=set_name,
        reading=reading,
        missing=missing,
        on_model=_say,
    )
    written = [] if out is None else write_represented(found, out)
    said = None
    if made is not None:
        folder = report_folder(workdir, made.study.name)
        files = write_represented(found, folder)
        written += files
        attached = _attached(found, sources, own)
        attached.files.extend((file, artifact_folder(file, folder)) for file in files)
        attached.files.extend(refresh_report(made, workdir))
        said = attach_files(workdir, tracking_uri, made.study.name, attached)
    if as_json:
        paths = [str(path) for path in written]
        print_json({**found_json(found), "written": paths, "note": said})
        return
    click.echo(markdown(found))
    for path in written:
        click.echo(f"written: {path}")
    if said is not None:
        click.echo(said)


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


def _check_of_study(model: str) -> None:
    """Refuse options on a study if a model is given."""
    source = click.get_current_context().get_parameter_source
    for name, option in _OF_STUDY.items():
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is of a study, and {model} is a model: leave it out")


def _model_source(name: str) -> ModelSource:
    from chip_core.config.trial import ModelConfig
    from orchestrator.representation.measure import ModelSource

    return ModelSource(row=name, model=ModelConfig(path=name))


def _attached(
    found: RepresentationResults,
    sources: Sequence[ModelSource],
    own: Mapping[int, Mapping[str, Figure]],
) -> StudyAttachment:
    """Return figures to attach to a study's runs: trials' own figures, arms' with intervals."""
    from orchestrator.representation.results import metrics
    from orchestrator.tracking.attachments import StudyAttachment

    base: Mapping[str, float] = {}
    arms: dict[str, tuple[Arm, Mapping[str, float]]] = {}
    trials: list[tuple[Arm, Trial, Mapping[str, float]]] = []
    rows = {row.name: row.figures for row in found.rows}
    for place, source in enumerate(sources):
        if source.arm is None or source.trial is None:
            base = metrics(found, own[place], intervals=True)
            continue
        trials.append((source.arm, source.trial, metrics(found, own[place], intervals=False)))
        shown = metrics(found, rows[source.arm.name], intervals=True)
        arms[source.arm.name] = (source.arm, shown)
    return StudyAttachment(base=base, arms=arms, trials=trials)


def _say(name: str, done: int, total: int) -> None:
    if done == total:
        click.echo(f"{name}: {total} items", err=True)
