"""plugin check: a user's own strategy or loss term, held to what the shipped ones are held to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click


@click.group(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
def plugin() -> None:
    """Check code of your own."""


@plugin.command(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
@click.argument("name", metavar="MODULE:ATTR")
@click.option(
    "--set",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of a strategy: --set strength=0.3",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def check(name: str, parameters: tuple[str, ...], as_json: bool) -> int:
    """Check a rejected-image strategy (a class) or a loss term (a function).

    The exit code is 1 where a check fails.
    """
    from chip_core import plugins
    from chip_core.errors import UserError

    try:
        loaded = plugins.load(name)
        kind = "strategy" if isinstance(loaded, type) else "loss term"
        checks = dict(_strategy(name, parameters) if kind == "strategy" else _term(name))
    except ValueError as error:
        raise UserError(str(error)) from None
    wrong = {what: problem for what, problem in checks.items() if problem is not None}
    if as_json:
        source = plugins.source_hash(name)
        click.echo(json.dumps({"name": name, "kind": kind, "source": source, "checks": checks}))
    else:
        for what, problem in checks.items():
            click.echo(f"{what}: {'ok' if problem is None else problem}")
        click.echo(f"{name}, a {kind}: {len(checks) - len(wrong)} of {len(checks)} checks passed")
    return 1 if wrong else 0


def _term(name: str) -> Iterator[tuple[str, str | None]]:
    from chip_core.objectives.custom import check_term, load_term

    return check_term(load_term(name))


def _strategy(name: str, parameters: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    from pydantic import ValidationError

    from chip_core.config import RejectedImageConfig
    from chip_core.data.rejected_images.conformance import conformance
    from chip_core.errors import ConfigError
    from chip_core.recipes import parse_yaml
    from chip_core.validation import explain

    given: dict[str, Any] = {}
    for pair in parameters:
        key, _, text = pair.partition("=")
        given[key] = parse_yaml(text, f"--set {key}")
    try:
        config = RejectedImageConfig.model_validate({"strategy": name, "parameters": given})
    except ValidationError as error:
        raise ConfigError(explain(error, RejectedImageConfig, "--set")) from None
    yield from conformance(config).items()
