"""evaluate: score a model on benchmarks without a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import (
    data_path_options,
    is_on_command_line,
    make_override_option,
    make_protocol_option,
    model_options,
    resolve_data_paths,
    unique_values,
)
from orchestrator.commands.common.output import (
    ProgressPrinter,
    json_option,
    print_json,
    print_lines,
)
from orchestrator.commands.common.param_types import IntegerType, PathType, TextType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from chip_core.config.benchmark import BenchmarkConfig
    from chip_core.config.trial import EvaluationConfig
    from chip_core.results import Evaluation

#: The prefix of the answering engine's keys.
_EVALUATION_PREFIX = "evaluation."


@click.command(epilog="Example: chip-ablate evaluate my-model --benchmarks amber,pope --limit 100")
@click.argument("model", type=TextType())
@click.option(
    "--benchmarks",
    type=TextType(),
    required=True,
    help="Names separated by commas, or module:attr.",
)
@data_path_options
@click.option("--limit", type=IntegerType(1), help="A seeded subset of N questions of each.")
@make_protocol_option("How answers are generated and parsed.")
@make_override_option(
    "Settings of every benchmark: num_beams=3, judge.model=NAME, judge.base_url=URL; of the "
    "answering engine: evaluation.generator=vllm."
)
@model_options
@click.option(
    "--out",
    type=PathType("folder"),
    default=Path("chip-evaluation"),
    show_default=True,
    help="Folder for answers and scores; existing ones are reused.",
)
@json_option()
def evaluate(
    model: str,
    benchmarks: str,
    benchmark_data: Path | None,
    judge_replies: Path | None,
    limit: int | None,
    protocol: str,
    overrides: Sequence[tuple[str, Any]],
    base: str | None,
    dtype: Any,
    batch: int,
    out: Path,
    as_json: bool,
) -> None:
    """Ask MODEL, a Hugging Face or PEFT folder or a hub name, the questions of benchmarks.

    It needs no study, and does not write to a work directory.
    """
    from rich.console import Console

    from chip_core.evaluate import evaluate_model
    from chip_core.utils.errors import TrialError, UserError

    changes = unique_values("--set", overrides)
    _check_not_repeated(changes)
    evaluation_overrides = {
        key: changes.pop(key) for key in [*changes] if key.startswith(_EVALUATION_PREFIX)
    }
    settings = _parse_settings(benchmarks, {"protocol": protocol, "limit": limit, **changes})
    data_paths = resolve_data_paths(benchmark_data, judge_replies, judge_cache=out / "judge")
    try:
        evaluations = evaluate_model(
            model,
            settings,
            folder=out,
            data_paths=data_paths,
            base=base,
            dtype=dtype,
            batch_size=batch,
            answering=_parse_evaluation(evaluation_overrides),
            report=ProgressPrinter(Console(stderr=True)),
        )
    except TrialError as error:
        raise UserError(str(error)) from None
    if as_json:
        print_json(_evaluations_json(model, out, evaluations))
    else:
        print_lines(_evaluation_lines(evaluations))


def _check_not_repeated(changes: Mapping[str, Any]) -> None:
    """Refuse a key that an option or each benchmark sets as well."""
    for option in ("protocol", "limit"):
        if option in changes and is_on_command_line(option):
            raise click.UsageError(
                f"--set {option} and --{option} set the same thing: give one of them"
            )
    if "name" in changes:
        raise click.UsageError("--set name: the benchmarks are set by --benchmarks")


def _parse_settings(benchmarks: str, overrides: Mapping[str, Any]) -> list[BenchmarkConfig]:
    """Return each benchmark's settings, checked; `judge.model=x` is a key of a section."""
    from chip_core.config.benchmark import BenchmarkConfig
    from chip_core.config.validation import parse_model, set_key
    from chip_core.utils.errors import ConfigError

    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        set_key(tree, key, value)
    names = [name.strip() for name in benchmarks.split(",")]
    if not any(names):
        raise ConfigError(["--benchmarks: names none"])
    if not all(names):
        raise ConfigError([f"--benchmarks: '{benchmarks}' has a comma without a name next to it"])
    if len(set(names)) < len(names):
        raise ConfigError(["--benchmarks: a benchmark is named twice: name each once"])
    settings = [parse_model(BenchmarkConfig, {**tree, "name": name}, "--set") for name in names]
    if settings[0].half == "select":
        raise ConfigError(
            ["--set: half: select is for tuning, but these figures are reported: write report"]
        )
    return settings


def _parse_evaluation(overrides: Mapping[str, Any]) -> EvaluationConfig:
    """Return the checked configuration of the answering engine, given keys of a recipe."""
    from chip_core.config.trial import EvaluationConfig
    from chip_core.config.validation import parse_model, set_key

    tree: dict[str, Any] = {_EVALUATION_PREFIX[:-1]: {}}
    for key, value in overrides.items():
        set_key(tree, key, value)
    return parse_model(EvaluationConfig, tree[_EVALUATION_PREFIX[:-1]], "--set", _EVALUATION_PREFIX)


def _evaluations_json(
    model: str, out: Path, evaluations: Mapping[str, Evaluation]
) -> dict[str, Any]:
    from chip_core.evaluation.unreadable import count_unreadable

    return {
        "model": model,
        "out": str(out),
        "benchmarks": {
            name: {
                "metrics": {
                    metric.removeprefix(f"{name}/"): value
                    for metric, value in evaluation.metrics.items()
                },
                "unreadable": count_unreadable(()),
                **evaluation.metadata,
                "scores": str(out / evaluation.scores),
                "responses": str(out / evaluation.responses),
            }
            for name, evaluation in evaluations.items()
        },
    }


def _evaluation_lines(evaluations: Mapping[str, Evaluation]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from chip_core.evaluation.items import find_benchmark
    from chip_core.evaluation.unreadable import format_counts, format_example

    table = Table(box=None, pad_edge=False)
    for title in ("metric", "value", "unit"):
        table.add_column(title, justify="right" if title == "value" else "left")
    for name, evaluation in evaluations.items():
        benchmark_metrics = find_benchmark(name).metrics
        for metric, value in evaluation.metrics.items():
            unit = benchmark_metrics[metric.removeprefix(f"{name}/")].unit
            table.add_row(Text(metric), f"{value:.4g}", unit)
    yield table
    for name, evaluation in evaluations.items():
        metadata = evaluation.metadata
        subset = f", a seeded subset of {metadata['of']:,} questions" if "of" in metadata else ""
        yield Text(
            f"{name}: protocol {metadata['protocol']}, scorer {metadata['scorer']}, "
            f"{metadata['n']:,} scored, {metadata['missing']:,} missing{subset}",
            style="dim",
        )
        if "cut" in metadata:
            cut = metadata["cut"]
            yield Text(
                f"{name}: {cut['answers']:,} of {cut['of']:,} answers were cut at "
                f"{cut['max_new_tokens']:,} tokens",
                style="yellow",
            )
        if "unreadable" in metadata:
            yield Text(
                f"{name}: {format_counts(metadata['unreadable'])}, for instance", style="yellow"
            )
            for example in metadata["unreadable"]["examples"]:
                yield Text(f"  {format_example(example)}", style="dim")
