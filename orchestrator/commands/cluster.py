"""cluster, attach: check a cluster file, and follow studies on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import workdir_option
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import Location, Real, Text

if TYPE_CHECKING:
    from orchestrator.cluster.check import ClusterCheck

FILE = Location("file")


@click.group(epilog="Example: chip-ablate cluster check cluster.yaml --study encoder")
def cluster() -> None:
    """Look at cluster files."""


@cluster.command(epilog="Example: chip-ablate cluster check cluster.yaml --study encoder")
@click.argument("file", type=FILE)
@click.option("--study", type=Text(), help="Whether its trials find room, too.")
@click.option("--recipe", type=Text(), help="In place of the study's recipe.")
@click.option("--live", is_flag=True, help="Ask the machines of the running cluster, too.")
@json_option()
def check(file: Path, study: str | None, recipe: str | None, live: bool, as_json: bool) -> int:
    """Say all that is wrong with a cluster file; exit code 2 where anything is.

    Without --live no machine is asked.
    """
    from chip_core.utils.errors import ConfigError
    from orchestrator.cluster.check import add_problems, check_cluster
    from orchestrator.cluster.checks.capacity import study_resource_need
    from orchestrator.study.load import find_study, load_study
    from orchestrator.study.model import StudyChanges

    need = None
    if recipe is not None and study is None:
        raise click.UsageError("--recipe is of a study: give --study, too")
    if study is not None:
        need = study_resource_need(
            load_study(find_study(study), StudyChanges(recipe=recipe), elsewhere=True)
        )
    checked = check_cluster(file, need)
    if live and not checked.problems:
        from orchestrator.cluster.checks.live import live_problems
        from orchestrator.cluster.head import find_head

        checked = add_problems(checked, live_problems(checked.file, find_head(checked.file)))
    if as_json:
        print_json(_as_json(checked))
        return 2 if checked.problems else 0
    if checked.problems:
        raise ConfigError(checked.lines)
    for line in _good_lines(checked, study):
        click.echo(line)
    return 0


@cluster.command(epilog="Example: chip-ablate cluster idle --then 'sudo shutdown -h now'")
@click.option("--minutes", type=Real(above_zero=True), default=60.0, show_default=True)
@click.option(
    "--then", "command", type=Text(), required=True, help="What stops the machine: a shell command."
)
def idle(minutes: float, command: str) -> None:
    """On a head: run a command once no job, other machine or person was there for a while."""
    from orchestrator.cluster.idle import stop_when_idle

    stop_when_idle(60 * minutes, command)


@click.command(epilog="Example: chip-ablate attach")
@click.argument("job", type=Text(), required=False)
@click.option("--cluster", "file", type=FILE, help="Its file; by default the one it was sent with.")
@click.option("--stop", is_flag=True, help="Ask the job to stop, as Ctrl-C does a study.")
@json_option()
@workdir_option
def attach(job: str | None, file: Path | None, stop: bool, as_json: bool, workdir: Path) -> int:
    """Look on at a study that runs on a cluster, and fetch its report when it has ended.

    Without JOB it is the last one that was submitted from here; with --cluster, by anyone.
    """
    from orchestrator.cluster.session import find_job, stop_job, watch_job

    head, found = find_job(job, file, workdir)
    if stop:
        stop_job(head, found)
        if as_json:
            print_json({"job": found.job, "asked_to_stop": True})
        else:
            click.echo(f"{found.job} is asked to stop; chip-ablate attach {found.job} looks on")
        return 0
    return watch_job(head, found, print_json if as_json else None)


def _as_json(checked: ClusterCheck) -> dict[str, Any]:
    return {
        "file": str(checked.file.path),
        "problems": [{"key": each.key, "what": each.message} for each in checked.problems],
        "room": None if checked.capacity is None else vars(checked.capacity),
    }


def _good_lines(checked: ClusterCheck, study: str | None) -> list[str]:
    lines = [f"{checked.file.path}: nothing is wrong with it"]
    if checked.capacity is not None:
        lines.append(
            f"{study}: {checked.capacity.at_once} trials at once; room for "
            f"{checked.capacity.slots} workers"
        )
    return lines
