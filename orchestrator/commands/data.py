"""data: check preference data and benchmark folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator.commands.common.options import make_benchmark_data_option, resolve_data_paths
from orchestrator.commands.common.output import json_option, print_json, print_lines
from orchestrator.commands.common.param_types import IntegerType, TextType


@click.group(epilog="Example: chip-ablate data check pairs.jsonl")
def data() -> None:
    """Check preference data, and which benchmarks' files are there."""


@data.command(epilog="Example: chip-ablate data check 'data/train-*.parquet' --model shapes")
@click.argument("path", type=TextType())
@click.option(
    "--format",
    "layout",
    type=click.Choice(["auto", "rlhf-v", "rlaif-v", "trl", "jsonl"]),
    default="auto",
    show_default=True,
    help="Format of the rows; auto: detected from the columns.",
)
@click.option("--split", type=TextType(), help="Split of a folder or a hub name.")
@click.option("--limit", type=IntegerType(1), help="Only the first N rows.")
@click.option(
    "--image-root",
    type=TextType(),
    help="Folder that image paths are relative to; default: the data file's own.",
)
@click.option(
    "--model",
    type=TextType(),
    help="Model that the rows must suit, and whose tokenizer counts tokens; without it, words "
    "are compared.",
)
@click.option(
    "--recipe", type=TextType(), help="Instead of --model: a recipe that names the model."
)
@click.option(
    "--objective", type=TextType(), help="A preset: rows without the columns that it reads are bad."
)
@json_option()
def check(
    path: str,
    layout: Any,
    split: str | None,
    limit: int | None,
    image_root: str | None,
    model: str | None,
    recipe: str | None,
    objective: str | None,
    as_json: bool,
) -> int:
    """Count and measure rows, and list every bad one; exit code 1 if there are any.

    PATH is a file, a folder, a glob in quotes, or a data set's name on the hub. With a model, rows
    that its processor refuses are bad too.
    """
    from rich.console import Console
    from rich.text import Text

    from chip_core import recipes
    from chip_core.config.trial import DataConfig, ModelConfig
    from chip_core.config.validation import parse_trial_config
    from orchestrator.data.check import check_data, data_json, data_lines

    if model is not None and recipe is not None:
        raise click.UsageError("--model and --recipe: give one of them")
    objective_config = None
    if objective is not None:
        tree = {"model": "shapes", "objective": objective}
        objective_config = parse_trial_config(tree, "--objective").objective
    model_config = None if model is None else ModelConfig(path=model)
    if recipe is not None:
        file = recipes.find_recipe(recipe)
        model_config = parse_trial_config(recipes.read_yaml(file), str(file)).model
    source = DataConfig(source=path, format=layout, split=split, limit=limit, image_root=image_root)
    model_source = "--model" if recipe is None else f"{recipe}: model.path"
    report = check_data(
        source,
        model=model_config,
        console=Console(stderr=True),
        model_source=model_source,
        objective=objective_config,
    )
    if as_json:
        print_json(data_json(report))
    else:
        console = Console()
        for line in data_lines(report):
            console.print(line, soft_wrap=isinstance(line, Text))
    return 1 if report.bad else 0


@data.command(epilog="Example: chip-ablate data status --benchmark-data benchmarks")
@click.argument("names", type=TextType(), metavar="[BENCHMARK]...", nargs=-1)
@make_benchmark_data_option(
    "Folder with a folder for each benchmark, with its name and its published layout.",
    show_envvar=True,
)
@json_option()
def status(names: tuple[str, ...], benchmark_data: Path | None, as_json: bool) -> int:
    """Show which files of each benchmark are there, which are missing, and where to get them.

    The exit code is 1 if a benchmark's files do not have the published number of questions.
    """
    from chip_core.evaluation.benchmarks.status import find_benchmark_status
    from orchestrator.data.status import status_json, status_lines

    data = resolve_data_paths(benchmark_data).benchmark_data
    statuses = find_benchmark_status(names, data)
    if as_json:
        print_json(status_json(statuses, data))
    else:
        print_lines(status_lines(statuses, data), soft_wrap=True)
    return 1 if any(benchmark.state == "broken" for benchmark in statuses) else 0
