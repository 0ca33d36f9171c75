"""rm: a trial or a study out of a work directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands.options import workdir_option
from orchestrator.commands.output import json_option, print_json
from orchestrator.commands.values import Text

if TYPE_CHECKING:
    from orchestrator.removal import Removal

_NAMED = 8  # trials that are named before it is asked


@click.command(epilog="Example: chip-ablate rm encoder+optimizer.lr=1e-6")
@click.argument("what", type=Text(), metavar="STUDY|TRIAL")
@workdir_option
@click.option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option()
def rm(what: str, workdir: Path, tracking_uri: str | None, yes: bool, as_json: bool) -> int:
    """Remove a study that was run, or one trial: its files, its figures, its runs.

    Shows what would go, and asks. What another study has in its table stays, and nothing goes
    while a study runs. The study file is left alone.
    """
    from orchestrator.removal import nothing_runs, removal, remove
    from orchestrator.tracking.removal import forget_runs

    removal(workdir, what)  # what is not there is told before a lock is made
    with nothing_runs(workdir):
        going = removal(workdir, what)
        for line in _lines(going):
            click.echo(line, err=as_json)
        if not yes and not click.confirm("remove this?", err=as_json):
            click.echo("nothing was removed", err=True)
            return 1
        runs = sum(
            forget_runs(
                workdir, tracking_uri, study, None if study == going.study else going.trials
            )
            for study in going.shown_by
        )
        remove(workdir, going)
    if as_json:
        print_json(
            {
                "study": going.study,
                "trials": dict(going.trials),
                "shared": {mark: list(studies) for mark, studies in going.shared.items()},
                "bytes": going.bytes,
                "runs": runs,
            }
        )
        return 0
    click.echo(f"removed; {runs} runs are in MLflow's bin, which `mlflow gc` empties")
    if going.study is None and going.shown_by:
        click.echo(
            f"study {going.shown_by[0]} lacks it now: `chip-ablate run` makes it anew, "
            "`chip-ablate report` writes the report without it"
        )
    return 0


def _lines(going: Removal) -> list[str]:
    from chip_core.reference_cache.size import gigabytes
    from chip_core.registry import join_names

    names = [f"{name} ({mark[:8]})" for mark, name in going.trials.items()]
    listed = "; ".join(names[:_NAMED])
    more = f"; … and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    lines = [f"{len(names)} {'trial' if len(names) == 1 else 'trials'}: {listed or 'none'}{more}"]
    if going.study is not None:
        lines.append(f"the reports, figures and experiment of study {going.study}")
    lines.append(f"{gigabytes(going.bytes)} in {len(going.folders)} folders")
    if going.shared:
        others = sorted({study for studies in going.shared.values() for study in studies})
        lines.append(f"{len(going.shared)} of its trials stay: {join_names(others)} has them too")
    return lines
