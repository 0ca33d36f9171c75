"""show, diff, export, rm: show, compare, export and remove what was run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import (
    Override,
    places_options,
    planned,
    workdir_of,
    workdir_option,
)
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import Location, Text

if TYPE_CHECKING:
    from orchestrator.state.removal import Removal


@click.command(epilog="Example: chip-ablate show 3f9a2c")
@click.argument("trial", type=Text())
@workdir_option
@json_option()
def show(trial: str, workdir: Path, as_json: bool) -> None:
    """Show everything about one trial's figures: configuration, code, data, judge, times, files.

    TRIAL is the first characters of its fingerprint, or 'ARM, seed N'.
    """
    from rich.console import Console

    from orchestrator.report.trial_facts import collect_trial_facts, fact_lines
    from orchestrator.state.trial_lookup import find_trial

    facts = collect_trial_facts(workdir, find_trial(workdir, trial))
    if as_json:
        print_json(facts)
        return
    console = Console()
    for line in fact_lines(facts):
        console.print(line, soft_wrap=True)


@click.command(epilog="Example: chip-ablate diff encoder encoder --set optimizer.lr=1e-6")
@click.argument("study_a", type=Text())
@click.argument("study_b", type=Text())
@click.option("--recipe", type=Text(), help="In place of STUDY_B's recipe.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    type=Override(),
    metavar="KEY=VALUE",
    help="Change a key of STUDY_B's recipe.",
)
@workdir_option
@places_options
@json_option()
def diff(
    study_a: str,
    study_b: str,
    recipe: str | None,
    overrides: Sequence[tuple[str, Any]],
    workdir: Path,
    as_json: bool,
    **places: Any,
) -> None:
    """Show what two studies share: cells here, there and in both, keys that differ, figures."""
    from rich.console import Console

    from orchestrator.state.compare import difference_lines, differences
    from orchestrator.state.integrity import inspect_plan
    from orchestrator.state.ledger import Ledger

    where = {"workdir": workdir, "seeds": None, **places}
    one = planned(study_a, recipe=None, overrides=(), **where)
    other = planned(study_b, recipe=recipe, overrides=overrides, **where)
    ledger = Ledger(workdir, writes=False)
    found = differences(
        inspect_plan(one, ledger, workdir), inspect_plan(other, ledger, workdir), ledger
    )
    if as_json:
        print_json(found)
        return
    console = Console()
    for line in difference_lines(found):
        console.print(line, soft_wrap=True)


@click.command(epilog="Example: chip-ablate export 'chip, frozen, seed 0' my-model --merge")
@click.argument("trial", type=Text())
@click.argument("folder", metavar="DIR", type=Location("folder"))
@click.option("--merge", is_flag=True, help="Add an adapter to its base model's weights.")
@workdir_of("Whose trial.")
def export(trial: str, folder: Path, merge: bool, workdir: Path) -> None:
    """Write a trained model to DIR, ready to be served.

    TRIAL is a fingerprint's first characters, or a name as in the plan: 'ARM, seed N'.
    """
    from chip_core.export import export_model
    from orchestrator.state.trial_lookup import find_trained

    said = export_model(find_trained(workdir, trial), folder, merge=merge)
    click.echo(f"written: {folder}")
    for line in said:
        click.echo(line)


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
    from orchestrator.state.removal import no_running_study, plan_removal, remove
    from orchestrator.tracking.projection import delete_runs

    plan_removal(workdir, what)  # what is not there is told before a lock is made
    with no_running_study(workdir):
        going = plan_removal(workdir, what)
        for line in _removal_lines(going):
            click.echo(line, err=as_json)
        if not yes and not click.confirm("remove this?", err=as_json):
            click.echo("nothing was removed", err=True)
            return 1
        runs = sum(
            delete_runs(
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
                "shared": {
                    fingerprint: list(studies) for fingerprint, studies in going.shared.items()
                },
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


def _removal_lines(going: Removal) -> list[str]:
    from chip_core.reference_cache.size import format_bytes
    from chip_core.utils.registry import join_names

    names = [f"{name} ({fingerprint[:8]})" for fingerprint, name in going.trials.items()]
    listed = "; ".join(names[:_NAMED])
    more = f"; … and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    lines = [f"{len(names)} {'trial' if len(names) == 1 else 'trials'}: {listed or 'none'}{more}"]
    if going.study is not None:
        lines.append(f"the reports, figures and experiment of study {going.study}")
    lines.append(f"{format_bytes(going.bytes)} in {len(going.folders)} folders")
    if going.shared:
        others = sorted({study for studies in going.shared.values() for study in studies})
        lines.append(f"{len(going.shared)} of its trials stay: {join_names(others)} has them too")
    return lines
