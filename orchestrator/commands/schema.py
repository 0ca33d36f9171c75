"""schema: what editors are told of study files and recipes."""

from __future__ import annotations

from typing import Literal

import click


@click.command(epilog="Example: chip-ablate schema > study.schema.json")
@click.argument("kind", type=click.Choice(["study", "recipe"]), default="study")
def schema(kind: Literal["study", "recipe"]) -> None:
    """Print the JSON Schema of a study file, or of a recipe.

    An editor that knows YAML completes and checks a file whose first line is
    `# yaml-language-server: $schema=study.schema.json`, with the schema beside it.
    """
    from orchestrator.schemas import schema_text

    click.echo(schema_text(kind), nl=False)
