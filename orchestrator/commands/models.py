"""export: a trained model as a folder to serve."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.commands.options import workdir_of
from orchestrator.commands.values import Location, Text


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
    from orchestrator.named import find_trained

    said = export_model(find_trained(workdir, trial), folder, merge=merge)
    click.echo(f"written: {folder}")
    for line in said:
        click.echo(line)
