"""plugin check: a user's own code, held to what the shipped one is held to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
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
@click.option(
    "--benchmark-data",
    type=click.Path(path_type=Path),
    envvar="CHIP_ABLATE_BENCHMARK_DATA",
    help="Holds a benchmark's files, in a folder MODULE.ATTR.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def check(
    name: str, parameters: tuple[str, ...], benchmark_data: Path | None, as_json: bool
) -> int:
    """Check a rejected-image strategy or a benchmark (classes), or a loss term (a function).

    The exit code is 1 where a check fails.
    """
    from chip_core import plugins
    from chip_core.errors import UserError
    from orchestrator.report.mlflow_names import mlflow_name_lines
    from orchestrator.tracking.names import respelled

    names: dict[str, str] = {}  # of metrics, as MLflow has to spell them
    try:
        loaded = plugins.load(name)
        kind = _kind(loaded)
        if kind == "benchmark":
            checks = _benchmark(name, benchmark_data)
            names = respelled(_metric_names(name))
        else:
            checks = dict(_strategy(name, parameters) if kind == "strategy" else _term(name))
    except ValueError as error:
        raise UserError(str(error)) from None
    wrong = {what: problem for what, problem in checks.items() if problem is not None}
    if as_json:
        source = plugins.source_hash(name)
        found = {"name": name, "kind": kind, "source": source, "checks": checks}
        click.echo(json.dumps({**found, "mlflow_names": names}))
    else:
        for what, problem in checks.items():
            click.echo(f"{what}: {'ok' if problem is None else problem}")
        for line in mlflow_name_lines(names):
            click.echo(line)
        click.echo(f"{name}, a {kind}: {len(checks) - len(wrong)} of {len(checks)} checks passed")
    return 1 if wrong else 0


def _kind(loaded: Any) -> str:
    from chip_core.evaluation.task import Benchmark

    if isinstance(loaded, type):
        return "benchmark" if issubclass(loaded, Benchmark) else "strategy"
    return "benchmark" if isinstance(loaded, Benchmark) else "loss term"


def _benchmark(name: str, benchmark_data: Path | None) -> dict[str, str | None]:
    from chip_core.evaluation.asked import find_benchmark
    from chip_core.evaluation.conformance import conformance
    from chip_core.evaluation.replay import ReplayJudge
    from chip_core.evaluation.scorers.base import Resources
    from chip_core.places import Places
    from orchestrator.commands.options import absolute

    benchmark = find_benchmark(name)
    judge = ReplayJudge([]) if "judge" in benchmark.needs else None
    data = Places(benchmark_data=absolute(benchmark_data)).data(name)
    return conformance(benchmark, data=data, resources=Resources(judge=judge))


def _metric_names(name: str) -> list[str]:
    """Return a benchmark's metrics as a study has them."""
    from chip_core.evaluation.asked import find_benchmark
    from chip_core.evaluation.task import metric_name

    return [metric_name("report", name, metric) for metric in find_benchmark(name).metrics]


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
