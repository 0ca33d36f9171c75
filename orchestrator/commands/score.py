"""score: score existing answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.options import is_on_command_line, make_protocol_option
from orchestrator.commands.common.output import json_option, print_json
from orchestrator.commands.common.param_types import PathType, TextType

if TYPE_CHECKING:
    from chip_core.evaluation.benchmarks.base import ShippedBenchmark
    from chip_core.evaluation.scorer import Resources, ScoreResult

_FILE_TYPE: Any = PathType("file")


@click.command(
    epilog="Example: chip-ablate score amber --data AMBER --responses answers.json "
    "--similarity words.json"
)
@click.argument("benchmark", type=TextType())
@click.option("--data", type=PathType("folder"), help="Folder of the benchmark's own files.")
@click.option(
    "--responses",
    type=PathType(),  # POPE's are a folder
    required=True,
    help="The answers, JSON or JSON lines.",
)
@make_protocol_option(
    "official: what the benchmark's script prints; corrected: the measure as described; "
    "chip: answers parsed as in the paper."
)
@click.option("--judge-replies", type=_FILE_TYPE, help="A judge's replies, collected earlier.")
@click.option("--similarity", type=_FILE_TYPE, help='JSON of "word|word": similarity (AMBER).')
@click.option(
    "--coco",
    type=PathType(exists=True),
    help="COCO's annotation files, or a JSON of image id: objects.",
)
@click.option(
    "--tagger",
    type=click.Choice(["nltk", "spacy"]),
    default="nltk",
    show_default=True,
    help="Tags and lemmas of Object HalBench's objects.",
)
@json_option()
def score(
    benchmark: str,
    data: Path | None,
    responses: Path,
    protocol: Any,
    judge_replies: Path | None,
    similarity: Path | None,
    coco: Path | None,
    tagger: str,
    as_json: bool,
) -> None:
    """Score existing answers to BENCHMARK, of any model."""
    from chip_core.evaluation.benchmarks.base import find_shipped_benchmark
    from chip_core.evaluation.judge.cache import ReplayJudge
    from chip_core.utils.errors import TrialError, UserError

    scorer = find_shipped_benchmark(benchmark)
    _check_options_used(
        scorer,
        {
            "judge_replies": ("judge" in scorer.needs, "its answers are scored without a judge"),
            "similarity": ("similarity" in scorer.needs, "it does not compare words"),
            "coco": ("coco" in scorer.needs, "it does not need COCO's annotations"),
            "tagger": (
                {"judge", "nltk"} <= scorer.needs,
                "it does not find objects in texts by tags",
            ),
            "data": (benchmark != "shapes", "it has no files of its own"),
        },
    )
    if data is None and benchmark != "shapes":
        raise click.UsageError(f"--data is missing: the folder of {benchmark}'s own files")
    if data is not None and not data.is_dir():
        raise UserError(f"--data: there is no folder {data}")
    scorer.require_protocol(protocol)
    resources = _make_resources(
        scorer,
        judge=ReplayJudge.from_file(judge_replies) if judge_replies else None,
        similarity=similarity,
        coco=coco,
        tagger=tagger,
    )
    try:
        scored = scorer.score(
            scorer.read_responses(responses),
            data=data,
            protocol=protocol,
            resources=resources,
        )
    except TrialError as error:
        raise UserError(str(error)) from None
    if as_json:
        print_json(_scores_json(scorer, scored, protocol, resources))
    else:
        _print_scores(scorer, scored, protocol)


def _check_options_used(scorer: ShippedBenchmark, uses: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse an option that the benchmark does not use."""
    for name, (is_used, reason) in uses.items():
        if not is_used and is_on_command_line(name):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} has no effect on {scorer.name}: {reason}")


def _make_resources(
    scorer: ShippedBenchmark, *, judge: Any, similarity: Path | None, coco: Path | None, tagger: str
) -> Resources:
    """Return the resources that the options name. The scorer reports what is missing."""
    from chip_core.evaluation.scorer import Resources
    from chip_core.evaluation.text.language import make_tagger, spacy_problems
    from chip_core.evaluation.text.similarity import SPACY_VECTORS, SpacySimilarity, TableSimilarity

    similarity_model: Any = None
    if similarity is not None:
        similarity_model = TableSimilarity.from_file(similarity)
    elif "similarity" in scorer.needs and not spacy_problems(SPACY_VECTORS):
        similarity_model = SpacySimilarity()
    tagger_model = make_tagger(tagger) if {"judge", "nltk"} <= scorer.needs else None
    return Resources(similarity=similarity_model, coco=coco, judge=judge, tagger=tagger_model)


def _scores_json(
    scorer: ShippedBenchmark, scored: ScoreResult, protocol: str, resources: Resources
) -> dict[str, Any]:
    from chip_core.evaluation.unreadable import count_unreadable

    return {
        "benchmark": scorer.name,
        "metrics": scored.values,
        "n": scored.n,
        "missing": scored.missing,
        "unreadable": count_unreadable(scored.unreadable),
        "protocol": protocol,
        "version": scorer.version,
        "judge": resources.judge.model if resources.judge else None,
        "similarity": getattr(resources.similarity, "name", None),
        "tagger": resources.tagger.name if resources.tagger else None,
    }


def _print_scores(scorer: ShippedBenchmark, scored: ScoreResult, protocol: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from chip_core.evaluation.unreadable import count_unreadable, format_counts, format_example

    table = Table(title=f"{scorer.name}, protocol {protocol} ({scorer.version})")
    for title in ("metric", "figure", "unit", "better", "items"):
        table.add_column(title, justify="right" if title in ("figure", "items") else "left")
    for metric in scored.metrics:
        figure = "undefined" if metric.value is None else f"{metric.value:.2f}"
        better = "lower" if metric.goal == "minimize" else "higher"
        table.add_row(metric.name, figure, metric.unit, better, str(len(metric.items) or "-"))
    console = Console()
    console.print(table)
    console.print(f"{scored.n} answers scored, {scored.missing} missing")
    unreadable = count_unreadable(scored.unreadable)
    if unreadable["examples"]:
        console.print(f"{format_counts(unreadable)}, for instance")
    for example in unreadable["examples"]:
        console.print(Text(f"  {format_example(example)}", style="dim"))
