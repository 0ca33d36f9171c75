"""chip-ablate: the commands. Each is a few lines around what does the work."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from orchestrator import __version__
from orchestrator.data_commands import data

if TYPE_CHECKING:
    from orchestrator.plan import Plan

PROGRAM = "chip-ablate"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program; errors of the user are one line each and exit code 2."""
    from chip_core.errors import UserError

    given = _join_seeds(list(sys.argv[1:] if arguments is None else arguments))
    try:
        code = cli.main(args=given, prog_name=PROGRAM, standalone_mode=False)
    except UserError as error:
        _complain(str(error))
        code = 2
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        where = (
            f"{error.ctx.command_path}: "
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        _complain(f"{where}{error.format_message()}")
        code = 2
    except (KeyboardInterrupt, click.Abort):
        _complain("stopped")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str) -> None:
    for line in text.splitlines():
        click.echo(f"{PROGRAM}: {line}", err=True)


def _join_seeds(arguments: list[str]) -> list[str]:
    """Make `--seeds 0 1 2` one value: an option of click takes a fixed number of them."""
    joined: list[str] = []
    index = 0
    while index < len(arguments):
        joined.append(arguments[index])
        index += 1
        if joined[-1] == "--seeds":
            seeds = []
            while index < len(arguments) and arguments[index].isdigit():
                seeds.append(arguments[index])
                index += 1
            if seeds:
                joined.append(",".join(seeds))
    return joined


class _Seeds(click.ParamType[Any]):
    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return [int(seed) for seed in str(value).replace(",", " ").split()]
        except ValueError:
            self.fail(f"'{value}' is no list of whole numbers: write --seeds 0 1 2", param, ctx)


class _Timesteps(click.ParamType[Any]):
    name = "timesteps"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            steps = [int(step) for step in str(value).replace(",", " ").split()]
        except ValueError:
            steps = [-1]
        if not all(0 <= step <= 999 for step in steps):
            self.fail(f"'{value}' is no list of steps from 0 to 999: write 0,250,500", param, ctx)
        return steps


class _Override(click.ParamType[Any]):
    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from chip_core.recipes import parse_yaml

        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"'{value}' is no key=value: write --set optimizer.lr=1e-6", param, ctx)
        return key.strip(), parse_yaml(text, f"--set {key}")


def _study_options(command: Any) -> Any:
    for option in (
        click.argument("study"),
        click.option("--recipe", help="In place of the study's recipe: a variant of its own."),
        click.option("--seeds", type=_Seeds(), help="In place of the study's: --seeds 0 1 2 3"),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            type=_Override(),
            metavar="KEY=VALUE",
            help="Change a key of the recipe: a variant of its own.",
        ),
        click.option(
            "--workdir",
            type=click.Path(path_type=Path),
            default=Path("chip-runs"),
            show_default=True,
            help="Where runs, results and reports lie.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print results as JSON."),
    ):
        command = option(command)
    return command


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"Example: {PROGRAM} run encoder",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Ablation studies for CHiP: which part of the recipe does the work?

    A STUDY is a YAML file, or the name of a shipped one.
    """


@cli.command(epilog=f"Example: {PROGRAM} run ablations/encoder.yaml --seeds 0 1 2 3")
@_study_options
@click.option(
    "--executor",
    type=click.Choice(["ray", "inline"]),
    default="ray",
    show_default=True,
    help="ray: Tune schedules, Train executes. inline: one after another in this process.",
)
@click.option("--address", help="A running Ray cluster; without it Ray starts and stops here.")
@click.option("--max-concurrent", type=click.IntRange(1), help="Most trials at a time.")
@click.option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db.")
def run(
    study: str,
    workdir: Path,
    executor: str,
    address: str | None,
    max_concurrent: int | None,
    tracking_uri: str | None,
    as_json: bool,
    **changes: Any,
) -> int:
    """Run what is missing of a study, and report the whole."""
    from rich.console import Console

    from orchestrator.executors.base import Executor
    from orchestrator.report.files import as_json as summary_json
    from orchestrator.report.tables import plan_lines, result_lines
    from orchestrator.run import run_study

    plan = _plan(study, **changes)
    _single_threaded_waits()
    console = Console(stderr=as_json)
    for line in plan_lines(plan, workdir):
        console.print(line)

    def make_executor() -> Executor:
        if executor == "inline":
            from orchestrator.executors.inline import InlineExecutor

            return InlineExecutor()
        from orchestrator.executors.ray_tune import RayTuneExecutor

        return RayTuneExecutor(workdir=workdir, address=address, max_concurrent=max_concurrent)

    from orchestrator.tracking.mlflow import MlflowTracker

    tracker = MlflowTracker(workdir, tracking_uri)
    outcome = run_study(
        plan, workdir=workdir, executor=make_executor, tracker=tracker, console=console
    )
    for line in result_lines(outcome, workdir, tracker.address):
        console.print(line)
    if as_json:
        click.echo(
            json.dumps(
                {
                    **summary_json(outcome.summary),
                    "executed": outcome.executed,
                    "failed": outcome.failed,
                    "report": [str(path) for path in outcome.report],
                    "tracking": tracker.address,
                }
            )
        )
    if outcome.interrupted:
        return 130
    return 1 if outcome.failed else 0


@cli.command(epilog=f"Example: {PROGRAM} plan encoder --set optimizer.lr=2e-5")
@_study_options
def plan(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Show what would run, what is done already, and which cells are one trial."""
    from rich.console import Console

    from orchestrator.report.tables import plan_json, plan_lines, trial_table

    made = _plan(study, **changes)
    if as_json:
        click.echo(json.dumps(plan_json(made, workdir)))
        return
    console = Console()
    for line in plan_lines(made, workdir):
        console.print(line)
    console.print(trial_table(made, workdir))


@cli.command(epilog=f"Example: {PROGRAM} status encoder")
@_study_options
def status(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Show how far a study is: each trial's state, attempts and figures."""
    from rich.console import Console

    from orchestrator.report.tables import plan_json, status_lines, trial_table

    made = _plan(study, **changes)
    if as_json:
        click.echo(json.dumps(plan_json(made, workdir)))
        return
    console = Console()
    for line in status_lines(made, workdir):
        console.print(line)
    console.print(trial_table(made, workdir))


@cli.command(epilog=f"Example: {PROGRAM} report encoder")
@_study_options
def report(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Write a study's report (Markdown, CSV) from what is done, and print the table."""
    from rich.console import Console

    from orchestrator.ledger import Ledger
    from orchestrator.report.files import as_json as summary_json
    from orchestrator.report.files import write_report
    from orchestrator.report.summary import summarise
    from orchestrator.report.tables import summary_lines
    from orchestrator.run import report_folder

    made = _plan(study, **changes)
    _require_results(made, workdir)
    summary = summarise(made, Ledger(workdir), workdir)
    files = write_report(summary, report_folder(workdir, made.study.name))
    if as_json:
        written = [str(path) for path in files]
        click.echo(json.dumps({**summary_json(summary), "report": written}))
        return
    console = Console()
    for line in summary_lines(summary):
        console.print(line)
    for path in files:
        console.print(f"written: {path}", soft_wrap=True)


@cli.command(epilog=f"Example: {PROGRAM} gallery photo.jpg --out gallery.png")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[IMAGE]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("gallery.png"),
    show_default=True,
    help="Where the figure goes: .png, .pdf or .svg.",
)
@click.option("--timesteps", type=_Timesteps(), help="T of the noise series: 0,250,500")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    type=_Override(),
    metavar="KEY=VALUE",
    help="A key below rejected_image: crop.share=0.2, inpaint.path=FOLDER.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what is shown as JSON.")
def gallery(
    images: tuple[Path, ...],
    out: Path,
    timesteps: list[int] | None,
    seed: int,
    overrides: Sequence[tuple[str, Any]],
    as_json: bool,
) -> None:
    """Draw what every rejected-image strategy makes of IMAGEs, as one figure.

    Without IMAGEs, scenes of the embedded world are shown.
    """
    from orchestrator.report import gallery as pictures

    if out.suffix not in (".png", ".pdf", ".svg"):
        raise click.UsageError(f"--out: {out}: {out.suffix or 'nothing'} is no format of a figure")
    settings = _rejected_image_settings(overrides)
    shown = pictures.read_images(images) if images else pictures.scenes(3)
    steps = pictures.TIMESTEPS if timesteps is None else timesteps
    cells = pictures.gallery_cells(shown, timesteps=steps, settings=settings, seed=seed)
    pictures.draw_gallery(cells, out)
    if as_json:
        listed = [{"image": cell.row, "shown": cell.title, "note": cell.note} for cell in cells]
        click.echo(json.dumps({"out": str(out), "cells": listed}))
        return
    notes = [f"{cell.row}, {cell.title}: {cell.note}" for cell in cells if cell.note]
    click.echo("\n".join([*notes, f"written: {out}"]))


@cli.command(epilog=f"Example: {PROGRAM} export 'chip, frozen, seed 0' my-model --merge")
@click.argument("trial")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Add an adapter to its base model's weights.")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default=Path("chip-runs"),
    show_default=True,
    help="Whose trial.",
)
def export(trial: str, folder: Path, merge: bool, workdir: Path) -> None:
    """Write a trained model to DIR, ready to be served.

    TRIAL is a fingerprint's first characters, or a name as in the plan: 'ARM, seed N'.
    """
    from chip_core.export import export_model
    from orchestrator.export import find_trained

    said = export_model(find_trained(workdir, trial), folder, merge=merge)
    click.echo(f"written: {folder}")
    for line in said:
        click.echo(line)


@cli.command(epilog=f"Example: {PROGRAM} ui --port 5000")
@click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default=Path("chip-runs"),
    show_default=True,
    help="Whose runs to show.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def ui(workdir: Path, port: int, host: str) -> int:
    """Open MLflow's pages on a work directory."""
    import subprocess

    from chip_core.errors import UserError

    database = workdir.absolute() / "mlflow.db"
    if not database.exists():
        raise UserError(f"no runs in {workdir}: run a study first, or name its --workdir")
    click.echo(f"MLflow on {workdir}: http://{host}:{port} (Ctrl-C ends it)")
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", f"sqlite:///{database}",
        "--artifacts-destination", str(workdir.absolute() / "artifacts"),
        "--host", host, "--port", str(port),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


cli.add_command(data)


def _plan(
    study: str,
    *,
    recipe: str | None,
    seeds: list[int] | None,
    overrides: Sequence[tuple[str, Any]],
) -> Plan:
    """Return the plan of a study given by path or name, with the command line's changes."""
    from orchestrator.plan import make_plan
    from orchestrator.study import Changes, find_study, load_study

    changes = Changes(recipe=recipe, seeds=seeds, overrides=dict(overrides))
    return make_plan(load_study(find_study(study), changes))


def _rejected_image_settings(overrides: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the keys given below `rejected_image`, checked."""
    from pydantic import ValidationError

    from chip_core.config import RejectedImageConfig
    from chip_core.errors import ConfigError
    from chip_core.validation import explain, key_problem, set_key

    tree: dict[str, Any] = {}
    for key, value in overrides:
        whole = f"rejected_image.{key.removeprefix('rejected_image.')}"
        complaint = key_problem(whole)
        if complaint is not None:
            raise ConfigError([f"--set: {key}: {complaint}"])
        set_key(tree, whole, value)
    settings: dict[str, Any] = tree.get("rejected_image", {})
    painted = {"strategy": "inpaint"} if "inpaint" in settings else {}
    try:
        RejectedImageConfig.model_validate({**settings, **painted})
    except ValidationError as error:
        raise ConfigError(explain(error, RejectedImageConfig, "--set")) from None
    return settings


def _require_results(made: Plan, workdir: Path) -> None:
    from chip_core.errors import UserError
    from orchestrator.ledger import Ledger

    ledger = Ledger(workdir)
    if not any(ledger[trial.fingerprint].evaluations for trial in made.trials):
        raise UserError(
            f"study {made.study.name} has no figures in {workdir}: run it first, "
            "or name its --workdir"
        )


def _single_threaded_waits() -> None:
    """Let waiting OpenMP threads sleep: spinning ones make a small model's steps slow."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
