"""pairs: make preference pairs of a model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.common.options import (
    data_path_options,
    make_override_option,
    model_options,
    resolve_data_paths,
    unique_values,
)
from orchestrator.commands.common.output import ProgressPrinter, json_option, print_json
from orchestrator.commands.common.param_types import FloatType, IntegerType, PathType, TextType


@click.command(epilog="Example: chip-ablate pairs shapes --prompts shapes --limit 200 --out pairs")
@click.argument("model", type=TextType())
@click.option(
    "--prompts",
    type=TextType(),
    required=True,
    metavar="FILE",
    help="Rows of image and prompt, as preference data or alone; shapes: the embedded world's.",
)
@click.option(
    "--out",
    type=PathType("folder"),
    required=True,
    help="A folder for the pairs; existing answers there are not sampled again.",
)
@click.option("--limit", type=IntegerType(1), help="Only the first N prompts.")
@click.option(
    "-n", "answers", type=IntegerType(2), default=8, show_default=True, help="Answers a prompt."
)
@click.option("--temperature", type=FloatType(is_positive=True), default=1.0, show_default=True)
@click.option(
    "--top-p",
    type=FloatType(is_positive=True, high=1.0),
    default=1.0,
    show_default=True,
    help="Top-p: probability mass of the tokens that may be drawn.",
)
@click.option("--max-new-tokens", type=IntegerType(1), default=256, show_default=True)
@click.option(
    "--seed", type=IntegerType(0), default=0, show_default=True, help="Seed of all draws."
)
@click.option(
    "--rank",
    "ranker",
    type=TextType(),
    default="chair",
    show_default=True,
    metavar="RANKER",
    help="chair: fewest hallucinated objects; judge; or your own module:function.",
)
@click.option(
    "--margin",
    type=FloatType(),
    default=0.0,
    show_default=True,
    help="Minimum difference between best and worst; equal ones are never a pair.",
)
@make_override_option("Settings of the judge: judge.model=NAME, judge.base_url=URL.")
@data_path_options
@click.option(
    "--image-root",
    type=TextType(),
    help="Folder that image paths are relative to; default: the file's own.",
)
@model_options
@json_option()
def pairs(
    model: str,
    prompts: str,
    out: Path,
    limit: int | None,
    seed: int,
    overrides: Sequence[tuple[str, Any]],
    benchmark_data: Path | None,
    judge_replies: Path | None,
    image_root: str | None,
    base: str | None,
    dtype: Any,
    batch: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Sample answers of MODEL, rank them, and write best against worst as preference pairs.

    MODEL is a Hugging Face or PEFT folder or a hub name. Use the --out folder as `data.source`.
    """
    from rich.console import Console

    from chip_core.config.trial import DataConfig
    from chip_core.sample_pairs import sample_pairs
    from chip_core.utils.errors import TrialError, UserError

    pairs_config = _parse_settings(settings, unique_values("--set", overrides))
    data_paths = resolve_data_paths(benchmark_data, judge_replies, judge_cache=out / ".judge")
    try:
        result = sample_pairs(
            model,
            DataConfig(source=prompts, limit=limit, image_root=image_root),
            pairs_config,
            folder=out,
            data_paths=data_paths,
            seed=seed,
            base=base,
            dtype=dtype,
            batch_size=batch,
            report=ProgressPrinter(Console(stderr=True)),
        )
    except TrialError as error:
        raise UserError(str(error)) from None
    if as_json:
        print_json(result.as_json())
        return
    console = Console()
    console.print(
        f"{result.pairs:,} pairs of {result.prompts:,} prompts in {result.folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for reason, count in result.dropped.items():
        console.print(f"  {count:,} dropped: {reason}", markup=False, highlight=False)


def _parse_settings(given: dict[str, Any], changes: dict[str, Any]) -> Any:
    """Return the settings, checked; `judge.model=x` is a key of a section."""
    from chip_core.config.pairs import PairsConfig
    from chip_core.config.validation import parse_model, set_key
    from chip_core.utils.errors import ConfigError

    tree: dict[str, Any] = {}
    for key, value in changes.items():
        if key.split(".")[0] != "judge":
            raise ConfigError([f"--set {key}: is not a key of the judge: write judge.model=NAME"])
        set_key(tree, key, value)
    return parse_model(PairsConfig, {**tree, **given}, "--rank or --set")
