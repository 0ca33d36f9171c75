"""cluster, attach: check a cluster file, and follow studies on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from orchestrator.commands.common.options import workdir_option
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import FloatType, PathType, TextType

FILE_TYPE = PathType("file")


@click.group(epilog="Example: chip-ablate cluster check cluster.yaml --study encoder")
def cluster() -> None:
    """Check cluster files."""


@cluster.command(epilog="Example: chip-ablate cluster check cluster.yaml --study encoder")
@click.argument("file", type=FILE_TYPE)
@click.option("--study", type=TextType(), help="Also check whether its trials fit.")
@click.option("--recipe", type=TextType(), help="Use this recipe instead of the study's.")
@click.option("--live", is_flag=True, help="Also query the machines of the running cluster.")
@json_option()
def check(file: Path, study: str | None, recipe: str | None, live: bool, as_json: bool) -> int:
    """List all problems of a cluster file; exit code 2 if there are any.

    Without --live, no machine is contacted.
    """
    from chip_core.utils.errors import ConfigError
    from orchestrator.cluster.check import check_cluster
    from orchestrator.cluster.checks.capacity import study_resource_need
    from orchestrator.study.load import find_study, load_study
    from orchestrator.study.model import StudyChanges

    requirements = None
    if recipe is not None and study is None:
        raise click.UsageError("--recipe needs a study: give --study, too")
    if study is not None:
        requirements = study_resource_need(
            load_study(find_study(study), StudyChanges(recipe=recipe), is_remote=True)
        )
    report = check_cluster(file, requirements)
    if live and not report.problems:
        from orchestrator.cluster.checks.live import live_problems
        from orchestrator.cluster.head import find_head

        problems = live_problems(report.file, find_head(report.file))
        report = replace(report, problems=tuple(problems))
    if as_json:
        print_json(
            {
                "file": str(report.file.path),
                "problems": [
                    {"key": problem.key, "what": problem.message} for problem in report.problems
                ],
                "room": None if report.capacity is None else vars(report.capacity),
            }
        )
        return 2 if report.problems else 0
    if report.problems:
        raise ConfigError(report.lines)
    click.echo(f"{report.file.path}: no problems found")
    if report.capacity is not None:
        click.echo(
            f"{study}: {report.capacity.at_once} trials at once; room for "
            f"{report.capacity.slots} workers"
        )
    return 0


@cluster.command(epilog="Example: chip-ablate cluster idle --then 'sudo shutdown -h now'")
@click.option("--minutes", type=FloatType(is_positive=True), default=60.0, show_default=True)
@click.option(
    "--then",
    "command",
    type=TextType(),
    required=True,
    help="Shell command that stops the machine.",
)
def idle(minutes: float, command: str) -> None:
    """On a head: run a command after a while without jobs, other machines or logged-in users."""
    from orchestrator.cluster.idle import stop_when_idle

    stop_when_idle(60 * minutes, command)


@click.command(epilog="Example: chip-ablate attach")
@click.argument("job", type=TextType(), required=False)
@click.option(
    "--cluster",
    "file",
    type=FILE_TYPE,
    help="Its file; by default, the one that it was submitted with.",
)
@click.option("--stop", is_flag=True, help="Ask the job to stop, as Ctrl-C stops a study.")
@json_option()
@workdir_option
def attach(job: str | None, file: Path | None, stop: bool, as_json: bool, workdir: Path) -> int:
    """Follow a study that runs on a cluster, and fetch its report when it has ended.

    Without JOB, it is the last one submitted from here or, with --cluster, by anyone.
    """
    from orchestrator.cluster.session import find_job, stop_job, watch_job

    head, submission = find_job(job, file, workdir)
    if stop:
        stop_job(head, submission)
        if as_json:
            print_json({"job": submission.job, "asked_to_stop": True})
        else:
            click.echo(
                f"{submission.job} was asked to stop; chip-ablate attach {submission.job} follows "
                "it"
            )
        return 0
    return watch_job(head, submission, print_json if as_json else None)
