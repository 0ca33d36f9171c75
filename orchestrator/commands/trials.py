"""show, diff, export, rm: show, compare, export and remove trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import (
    data_path_options,
    load_plan,
    make_override_option,
    make_workdir_option,
    tracking_option,
    workdir_option,
)
from orchestrator.commands.common.output import json_option, print_json, print_lines
from orchestrator.commands.common.param_types import PathType, TextType

if TYPE_CHECKING:
    from orchestrator.state.removal import Removal


@click.command(epilog="Example: chip-ablate show 3f9a2c")
@click.argument("trial", type=TextType())
@workdir_option
@json_option()
def show(trial: str, workdir: Path, as_json: bool) -> None:
    """Show how one trial's figures were made: configuration, code, data, judge, times, files.

    TRIAL is the first characters of its fingerprint, or 'ARM, seed N'.
    """
    from orchestrator.report.trial_facts import collect_trial_facts, fact_lines
    from orchestrator.state.trial_lookup import find_trial

    facts = collect_trial_facts(workdir, find_trial(workdir, trial))
    if as_json:
        print_json(facts)
    else:
        print_lines(fact_lines(facts), soft_wrap=True)


@click.command(epilog="Example: chip-ablate diff encoder encoder --set optimizer.lr=1e-6")
@click.argument("study_a", type=TextType())
@click.argument("study_b", type=TextType())
@click.option("--recipe", type=TextType(), help="Use this recipe instead of STUDY_B's.")
@make_override_option("Change a key of STUDY_B's recipe.")
@workdir_option
@data_path_options
@json_option()
def diff(
    study_a: str,
    study_b: str,
    recipe: str | None,
    overrides: Sequence[tuple[str, Any]],
    workdir: Path,
    as_json: bool,
    **data_options: Any,
) -> None:
    """Compare two studies: cells in one or both of them, different keys, shared figures."""
    from orchestrator.state.compare import compare_plans, difference_lines
    from orchestrator.state.integrity import inspect_plan
    from orchestrator.state.ledger import Ledger

    plan_options = {"workdir": workdir, "seeds": None, **data_options}
    first = load_plan(study_a, recipe=None, overrides=(), **plan_options)
    second = load_plan(study_b, recipe=recipe, overrides=overrides, **plan_options)
    ledger = Ledger(workdir, writable=False)
    differences = compare_plans(
        inspect_plan(first, ledger, workdir), inspect_plan(second, ledger, workdir), ledger
    )
    if as_json:
        print_json(differences)
    else:
        print_lines(difference_lines(differences), soft_wrap=True)


@click.command(epilog="Example: chip-ablate export 'chip, frozen, seed 0' my-model --merge")
@click.argument("trial", type=TextType())
@click.argument("folder", metavar="DIR", type=PathType("folder"))
@click.option("--merge", is_flag=True, help="Merge an adapter into its base model's weights.")
@make_workdir_option("Work directory of the trial.")
def export(trial: str, folder: Path, merge: bool, workdir: Path) -> None:
    """Write a trained model to DIR, ready for serving.

    TRIAL is a fingerprint's first characters, or a name as in the plan: 'ARM, seed N'.
    """
    from chip_core.export import export_model
    from orchestrator.state.trial_lookup import find_trained_attempt

    notes = export_model(find_trained_attempt(workdir, trial), folder, merge=merge)
    click.echo(f"written: {folder}")
    for line in notes:
        click.echo(line)


_MAX_LISTED = 8  # trials that are named before it is asked


@click.command(epilog="Example: chip-ablate rm encoder+optimizer.lr=1e-6")
@click.argument("what", type=TextType(), metavar="STUDY|TRIAL")
@workdir_option
@tracking_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option()
def rm(what: str, workdir: Path, tracking_uri: str | None, yes: bool, as_json: bool) -> int:
    """Remove a study that was run, or one trial: its files, its figures, its runs.

    Shows what would be removed, and asks. Trials in another study's table are kept, and nothing is
    removed while a study runs. The study file is not touched.
    """
    from orchestrator.state.removal import apply_removal, lock_all_studies, plan_removal
    from orchestrator.tracking.projection import delete_runs

    plan_removal(workdir, what)  # what does not exist is reported before a lock is created
    with lock_all_studies(workdir):
        removal = plan_removal(workdir, what)
        for line in _removal_lines(removal):
            click.echo(line, err=as_json)
        if not yes and not click.confirm("remove this?", err=as_json):
            click.echo("nothing was removed", err=True)
            return 1
        runs = sum(
            delete_runs(
                workdir, tracking_uri, study, None if study == removal.study else removal.trials
            )
            for study in removal.studies
        )
        apply_removal(workdir, removal)
    if as_json:
        print_json(
            {
                "study": removal.study,
                "trials": dict(removal.trials),
                "shared": {
                    fingerprint: list(studies) for fingerprint, studies in removal.shared.items()
                },
                "bytes": removal.bytes,
                "runs": runs,
            }
        )
        return 0
    click.echo(f"removed; {runs} runs are in MLflow's trash, which `mlflow gc` empties")
    if removal.study is None and removal.studies:
        click.echo(
            f"study {removal.studies[0]} no longer has it: `chip-ablate run` runs it again, and "
            "`chip-ablate report` writes the report without it"
        )
    return 0


def _removal_lines(removal: Removal) -> list[str]:
    from chip_core.reference_cache.size import format_bytes
    from chip_core.utils.registry import join_names

    names = [f"{name} ({fingerprint[:8]})" for fingerprint, name in removal.trials.items()]
    listed = "; ".join(names[:_MAX_LISTED])
    remainder = f"; … and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    lines = [
        f"{len(names)} {'trial' if len(names) == 1 else 'trials'}: {listed or 'none'}{remainder}"
    ]
    if removal.study is not None:
        lines.append(f"the reports, figures and experiment of study {removal.study}")
    lines.append(f"{format_bytes(removal.bytes)} in {len(removal.folders)} folders")
    if removal.shared:
        holders = sorted({study for studies in removal.shared.values() for study in studies})
        lines.append(
            f"{len(removal.shared)} of its trials are kept, because they are also in "
            f"{join_names(holders)}"
        )
    return lines
