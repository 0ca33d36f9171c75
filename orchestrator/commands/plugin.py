"""plugin: check plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import Override, each_once, places_of
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import Location, Text

if TYPE_CHECKING:
    from chip_core.config.benchmark import DataPaths


@click.group(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
def plugin() -> None:
    """Check code of your own."""


@plugin.command(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
@click.argument("name", type=Text(), metavar="MODULE:ATTR")
@click.option(
    "--set",
    "parameters",
    multiple=True,
    type=Override(),
    metavar="KEY=VALUE",
    help="A parameter of a strategy: --set strength=0.3",
)
@click.option(
    "--benchmark-data",
    type=Location(is_local=False),
    envvar="CHIP_ABLATE_BENCHMARK_DATA",
    help="Holds a benchmark's files, in a folder MODULE.ATTR.",
)
@json_option("Print the checks as JSON.")
def check(
    name: str, parameters: tuple[tuple[str, Any], ...], benchmark_data: Path | None, as_json: bool
) -> int:
    """Check a rejected-image strategy or a benchmark (classes), or a loss term (a function).

    The exit code is 1 where a check fails.
    """
    from chip_core.utils import plugins
    from chip_core.utils.errors import UserError
    from orchestrator.report.writers.plan import mlflow_name_lines
    from orchestrator.tracking.names import encode_invalid

    given = each_once("--set", parameters)
    data = places_of(benchmark_data)
    names: dict[str, str] = {}  # of metrics, as MLflow has to spell them
    try:
        loaded = plugins.load_plugin(name)
        kind = _kind(loaded)
        if given and kind != "strategy":
            raise UserError(f"--set: {name} is a {kind}, and only a strategy has parameters")
        if benchmark_data is not None and kind != "benchmark" and _is_given("benchmark_data"):
            raise UserError(f"--benchmark-data: {name} is a {kind}, and reads no benchmark's files")
        if kind == "benchmark":
            checks = _benchmark(name, data)
            names = encode_invalid(_metric_names(name))
        else:
            checks = dict(_strategy(name, given) if kind == "strategy" else _term(name))
    except ValueError as error:
        raise UserError(str(error)) from None
    wrong = {what: problem for what, problem in checks.items() if problem is not None}
    if as_json:
        source = plugins.source_hash(name)
        found = {"name": name, "kind": kind, "source": source, "checks": checks}
        print_json({**found, "mlflow_names": names})
    else:
        for what, problem in checks.items():
            click.echo(f"{what}: {'ok' if problem is None else problem}")
        for line in mlflow_name_lines(names):
            click.echo(line)
        click.echo(f"{name}, a {kind}: {len(checks) - len(wrong)} of {len(checks)} checks passed")
    return 1 if wrong else 0


def _is_given(option: str) -> bool:
    """Return whether an option was given on the command line, not in the environment."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _kind(loaded: Any) -> str:
    from chip_core.evaluation.task import Benchmark

    if isinstance(loaded, type):
        return "benchmark" if issubclass(loaded, Benchmark) else "strategy"
    return "benchmark" if isinstance(loaded, Benchmark) else "loss term"


def _benchmark(name: str, places: DataPaths) -> dict[str, str | None]:
    from chip_core.evaluation.conformance import check_conformance
    from chip_core.evaluation.items import find_benchmark
    from chip_core.evaluation.judge.cache import ReplayJudge
    from chip_core.evaluation.scorer import Resources

    benchmark = find_benchmark(name)
    judge = ReplayJudge([]) if "judge" in benchmark.needs else None
    return check_conformance(
        benchmark, data=places.benchmark_folder(name), resources=Resources(judge=judge)
    )


def _metric_names(name: str) -> list[str]:
    """Return the names of a benchmark's metrics in a study."""
    from chip_core.evaluation.items import find_benchmark
    from chip_core.evaluation.task import metric_name

    return [metric_name("report", name, metric) for metric in find_benchmark(name).metrics]


def _term(name: str) -> Iterator[tuple[str, str | None]]:
    from chip_core.objectives.custom import check_term, load_term

    return check_term(load_term(name))


def _strategy(name: str, given: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    from pydantic import ValidationError

    from chip_core.config.trial import RejectedImageConfig
    from chip_core.config.validation import explain_errors
    from chip_core.data.rejected_images.conformance import conformance
    from chip_core.utils.errors import ConfigError

    try:
        config = RejectedImageConfig.model_validate({"strategy": name, "parameters": dict(given)})
    except ValidationError as error:
        raise ConfigError(explain_errors(error, RejectedImageConfig, "--set")) from None
    yield from conformance(config).items()
