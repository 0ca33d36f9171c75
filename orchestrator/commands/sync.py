"""sync: show MLflow what it missed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.commands.common.options import workdir_option
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import Text


@click.command(epilog="Example: chip-ablate sync encoder --tracking-uri http://127.0.0.1:5000")
@click.argument("studies", type=Text(), metavar="[STUDY]...", nargs=-1)
@workdir_option
@click.option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db.")
@json_option()
def sync(studies: tuple[str, ...], workdir: Path, tracking_uri: str | None, as_json: bool) -> None:
    """Show MLflow what it missed of studies: all of the work directory, or those named.

    Whatever it has already stays as it is.
    """
    from chip_core.utils.errors import ConfigError, UserError
    from orchestrator.report.writers.next_steps import tracking_lines
    from orchestrator.runner.sync import find_snapshots, sync_study
    from orchestrator.tracking.attachments import reattach_files
    from orchestrator.tracking.projection import MlflowTracker

    done, problems = [], []
    for kept in find_snapshots(workdir, studies):
        try:
            found = sync_study(kept, workdir, MlflowTracker(workdir, tracking_uri))
            reattach_files(workdir, tracking_uri, kept.study)
        except UserError as error:
            problems.append(str(error))
            continue
        done.append(found)
        if not as_json:
            [said] = tracking_lines(None, "", found.refused)
            click.echo(f"{found.study}: {said}: {found.trials} trials on {found.address}")
    if as_json:
        print_json({"synced": [asdict(one) for one in done], "problems": problems})
    if problems:
        raise ConfigError(dict.fromkeys(problems))
