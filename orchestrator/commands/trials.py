"""show, diff: what is known of one trial, and of two studies beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.options import Override, places_options, planned, workdir_option
from orchestrator.commands.output import json_option, print_json
from orchestrator.commands.values import Text


@click.command(epilog="Example: chip-ablate show 3f9a2c")
@click.argument("trial", type=Text())
@workdir_option
@json_option()
def show(trial: str, workdir: Path, as_json: bool) -> None:
    """Show everything about one trial's figures: configuration, code, data, judge, times, files.

    TRIAL is the first characters of its fingerprint, or 'ARM, seed N'.
    """
    from rich.console import Console

    from orchestrator.named import find_trial
    from orchestrator.show import fact_lines, trial_facts

    facts = trial_facts(workdir, find_trial(workdir, trial))
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

    from orchestrator.differences import difference_lines, differences
    from orchestrator.integrity import look
    from orchestrator.ledger import Ledger

    where = {"workdir": workdir, "seeds": None, **places}
    one = planned(study_a, recipe=None, overrides=(), **where)
    other = planned(study_b, recipe=recipe, overrides=overrides, **where)
    ledger = Ledger(workdir, writes=False)
    found = differences(look(one, ledger, workdir), look(other, ledger, workdir), ledger)
    if as_json:
        print_json(found)
        return
    console = Console()
    for line in difference_lines(found):
        console.print(line, soft_wrap=True)
