"""plugin: check plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import (
    is_on_command_line,
    make_benchmark_data_option,
    make_override_option,
    resolve_data_paths,
    unique_values,
)
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import TextType

if TYPE_CHECKING:
    from chip_core.config.benchmark import DataPaths


@click.group(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
def plugin() -> None:
    """Check code of your own."""


@plugin.command(epilog="Example: chip-ablate plugin check my_lab.terms:my_term")
@click.argument("name", type=TextType(), metavar="MODULE:ATTR")
@make_override_option("Set a parameter of a strategy: --set strength=0.3")
@make_benchmark_data_option("Folder with a benchmark's files in a folder MODULE.ATTR.")
@json_option("Print the checks as JSON.")
def check(
    name: str, overrides: tuple[tuple[str, Any], ...], benchmark_data: Path | None, as_json: bool
) -> int:
    """Check a rejected-image strategy or a benchmark (classes), or a loss term (a function).

    The exit code is 1 if a check fails.
    """
    from chip_core.objectives.custom import check_term, load_term
    from chip_core.utils import registry
    from chip_core.utils.errors import UserError
    from orchestrator.report.writers.plan import mlflow_name_lines
    from orchestrator.tracking.names import encode_invalid

    parameters = unique_values("--set", overrides)
    data_path = resolve_data_paths(benchmark_data)
    metric_names: dict[str, str] = {}  # of metrics, as MLflow has to spell them
    try:
        loaded = registry.load_plugin(name)
        kind = _plugin_kind(loaded)
        if parameters and kind != "strategy":
            raise UserError(f"--set: {name} is a {kind}, but only a strategy has parameters")
        if kind != "benchmark" and is_on_command_line("benchmark_data"):
            raise UserError(f"--benchmark-data: {name} is a {kind}, and reads no benchmark's files")
        if kind == "benchmark":
            checks = _check_benchmark(name, data_path)
            metric_names = encode_invalid(_metric_names(name))
        else:
            checks = (
                _check_strategy(name, parameters)
                if kind == "strategy"
                else dict(check_term(load_term(name)))
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


def _check_strategy(name: str, parameters: Mapping[str, Any]) -> dict[str, str | None]:
    from chip_core.config.trial import RejectedImageConfig
    from chip_core.config.validation import parse_model
    from chip_core.data.rejected_images.conformance import conformance

    tree = {"strategy": name, "parameters": dict(parameters)}
    return conformance(parse_model(RejectedImageConfig, tree, "--set"))
