"""plugin: check plug-ins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import OverrideType, resolve_data_paths, unique_values
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import PathType, TextType

if TYPE_CHECKING:
    from chip_core.config.benchmark import DataPaths


@click.group(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
def plugin() -> None:
    """Check code of your own."""


@plugin.command(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
@click.argument("name", type=TextType(), metavar="MODULE:ATTR")
@click.option(
    "--set",
    "parameters",
    multiple=True,
    type=OverrideType(),
    metavar="KEY=VALUE",
    help="Set a parameter of a strategy: --set strength=0.3",
)
@click.option(
    "--benchmark-data",
    type=PathType(is_local=False),
    envvar="CHIP_ABLATE_BENCHMARK_DATA",
    help="Folder with a benchmark's files in a folder MODULE.ATTR.",
)
@json_option("Print the checks as JSON.")
def check(
    name: str, parameters: tuple[tuple[str, Any], ...], benchmark_data: Path | None, as_json: bool
) -> int:
    """Check a rejected-image strategy or a benchmark (classes), or a loss term (a function).

    The exit code is 1 if a check fails.
    """
    from chip_core.utils import registry
    from chip_core.utils.errors import UserError
    from orchestrator.report.writers.plan import mlflow_name_lines
    from orchestrator.tracking.names import encode_invalid

    parameter_values = unique_values("--set", parameters)
    data_path = resolve_data_paths(benchmark_data)
    metric_names: dict[str, str] = {}  # of metrics, as MLflow has to spell them
    try:
        loaded = registry.load_plugin(name)
        kind = _plugin_kind(loaded)
        if parameter_values and kind != "strategy":
            raise UserError(f"--set: {name} is a {kind}, but only a strategy has parameters")
        if (
            benchmark_data is not None
            and kind != "benchmark"
            and _is_on_command_line("benchmark_data")
        ):
            raise UserError(f"--benchmark-data: {name} is a {kind}, and reads no benchmark's files")
        if kind == "benchmark":
            checks = _check_benchmark(name, data_path)
            metric_names = encode_invalid(_metric_names(name))
        else:
            checks = dict(
                _check_strategy(name, parameter_values)
                if kind == "strategy"
                else _check_loss_term(name)
            )
    except ValueError as error:
        raise UserError(str(error)) from None
    failed_checks = {
        description: problem for description, problem in checks.items() if problem is not None
    }
    if as_json:
        source = registry.source_hash(name)
        results = {"name": name, "kind": kind, "source": source, "checks": checks}
        print_json({**results, "mlflow_names": metric_names})
    else:
        for description, problem in checks.items():
            click.echo(f"{description}: {'ok' if problem is None else problem}")
        for line in mlflow_name_lines(metric_names):
            click.echo(line)
        click.echo(
            f"{name}, a {kind}: {len(checks) - len(failed_checks)} of {len(checks)} checks passed"
        )
    return 1 if failed_checks else 0


def _is_on_command_line(option: str) -> bool:
    """Return whether an option was given on the command line, not in the environment."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _plugin_kind(loaded: Any) -> str:
    from chip_core.evaluation.task import Benchmark

    if isinstance(loaded, type):
        return "benchmark" if issubclass(loaded, Benchmark) else "strategy"
    return "benchmark" if isinstance(loaded, Benchmark) else "loss term"


def _check_benchmark(name: str, data_paths: DataPaths) -> dict[str, str | None]:
    from chip_core.evaluation.conformance import check_conformance
    from chip_core.evaluation.items import find_benchmark
    from chip_core.evaluation.judge.cache import ReplayJudge
    from chip_core.evaluation.scorer import Resources

    benchmark = find_benchmark(name)
    judge = ReplayJudge([]) if "judge" in benchmark.needs else None
    return check_conformance(
        benchmark, data=data_paths.benchmark_folder(name), resources=Resources(judge=judge)
    )


def _metric_names(name: str) -> list[str]:
    """Return the names of a benchmark's metrics in a study."""
    from chip_core.evaluation.items import find_benchmark
    from chip_core.evaluation.task import metric_name

    return [metric_name("report", name, metric) for metric in find_benchmark(name).metrics]


def _check_loss_term(name: str) -> Iterator[tuple[str, str | None]]:
    from chip_core.objectives.custom import check_term, load_term

    return check_term(load_term(name))


def _check_strategy(name: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    from pydantic import ValidationError

    from chip_core.config.trial import RejectedImageConfig
    from chip_core.config.validation import explain_errors
    from chip_core.data.rejected_images.conformance import conformance
    from chip_core.utils.errors import ConfigError

    try:
        config = RejectedImageConfig.model_validate(
            {"strategy": name, "parameters": dict(parameters)}
        )
    except ValidationError as error:
        raise ConfigError(explain_errors(error, RejectedImageConfig, "--set")) from None
    yield from conformance(config).items()
