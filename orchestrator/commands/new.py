"""new, schema: study files from a few answers, and the JSON Schemas that editors read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from orchestrator.commands.common.param_types import IntegerType, PathType, TextType

if TYPE_CHECKING:
    from rich.console import Console


T = TypeVar("T")


@click.command(epilog="Example: chip-ablate new --name beta --factor objective.beta=0.1,0.3")
@click.option(
    "--name", type=TextType(), help="The study's name; by default, the file is NAME.yaml."
)
@click.option("--question", type=TextType(), help="The question that it answers, in a sentence.")
@click.option("--recipe", type=TextType(), help="A shipped recipe's name, or a file.")
@click.option(
    "--factor",
    "factors",
    multiple=True,
    type=TextType(),
    metavar="KEY=LEVEL,LEVEL",
    help="What is varied; repeat it for each factor.",
)
@click.option("--seeds", type=IntegerType(1, 1000), help="How many.")
@click.option(
    "--benchmark",
    "benchmarks",
    type=TextType(),
    multiple=True,
    help="Repeat it for each benchmark.",
)
@click.option("--primary", type=TextType(), help="The metric that the question is about.")
@click.option(
    "--out", type=PathType("file"), help="The file; an existing one is never overwritten."
)
def new(
    name: str | None,
    question: str | None,
    recipe: str | None,
    factors: Sequence[str],
    seeds: int | None,
    benchmarks: Sequence[str],
    primary: str | None,
    out: Path | None,
) -> None:
    """Write a study file; asks for what the options leave open."""
    from rich.console import Console

    from chip_core import recipes
    from chip_core.utils.errors import UserError
    from orchestrator.study.template import (
        StudyAnswers,
        benchmark_metrics,
        parse_factor,
        write_study,
    )

    ask = _Prompter(Console(stderr=True))
    study_name = name or ask("name", "What is the study called?", str)
    path = out or Path(f"{study_name}.yaml")
    if path.exists():
        raise UserError(f"{path}: already exists: choose another file with --out")
    question_text = (
        ask("question", "Which question should it answer?", str) if question is None else question
    )
    recipe_name = recipe or ask(
        "recipe",
        f"Which recipe? A file, or one of {', '.join(recipes.recipe_names())}",
        str,
        "shapes",
    )
    parsed_factors = [parse_factor(text) for text in factors]
    while not parsed_factors or (not factors and ask.confirm("Another factor?")):
        parsed_factors.append(
            ask("factor", "What is varied? A key and its levels, objective=dpo,chip", parse_factor)
        )
    seed_count = seeds or ask("seeds", "How many seeds?", _parse_count, "3")
    benchmark_names = list(benchmarks) or ask(
        "benchmark", "Which benchmarks?", _parse_benchmarks, "shapes"
    )
    metrics = benchmark_metrics(benchmark_names)
    primary_metric = primary or ask(
        "primary", f"Which metric is it about? One of {', '.join(metrics)}", str, metrics[0]
    )
    key_counts = Counter(key for key, _ in parsed_factors)
    repeated = sorted(key for key, count in key_counts.items() if count > 1)
    if repeated:
        raise UserError(
            f"--factor: {', '.join(repeated)} is named twice: give all of its levels at once"
        )
    answers = StudyAnswers(
        name=study_name,
        question=question_text,
        recipe=recipe_name,
        factors=dict(parsed_factors),
        seeds=seed_count,
        benchmarks=benchmark_names,
        primary=primary_metric,
    )
    write_study(answers, path)
    command = shlex.join(["chip-ablate", "plan", str(path)])
    click.echo(f"wrote {path}; to see what it would run: {command}")


class _Prompter:
    """Asks until an answer is valid; at the end of input, names the option to use."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(
        self, option: str, text: str, parse: Callable[[str], T], default: str | None = None
    ) -> T:
        from rich.prompt import Prompt
        from rich.text import Text

        from chip_core.utils.errors import UserError

        while True:
            try:
                prompt = Text(text)
                answer = (
                    Prompt.ask(prompt, console=self._console)
                    if default is None
                    else Prompt.ask(prompt, console=self._console, default=default)
                )
            except EOFError:
                raise UserError(
                    f"--{option} is not given, and nobody can be asked: give it"
                ) from None
            try:
                if (answer or "").strip():
                    return parse(answer.strip())
            except UserError as error:
                self._console.print(str(error), markup=False)

    def confirm(self, text: str) -> bool:
        """Ask whether to continue; no at the end of input."""
        from rich.prompt import Confirm

        try:
            return Confirm.ask(text, console=self._console, default=False)
        except EOFError:
            return False


def _parse_count(text: str) -> int:
    from chip_core.utils.errors import UserError

    if not text.isdigit() or int(text) < 1:
        raise UserError(f"'{text}' is not a count of seeds: write 1 or more")
    return int(text)


def _parse_benchmarks(text: str) -> list[Any]:
    from orchestrator.study.template import benchmark_metrics

    names = text.replace(",", " ").split()
    benchmark_metrics(names)
    return names


@click.command(epilog="Example: chip-ablate schema > study.schema.json")
@click.argument("kind", type=click.Choice(["study", "recipe"]), default="study")
def schema(kind: Literal["study", "recipe"]) -> None:
    """Print the JSON Schema of a study file, or of a recipe.

    An editor that knows YAML completes and checks a file whose first line is
    `# yaml-language-server: $schema=study.schema.json`, with the schema next to it.
    """
    from orchestrator.study.json_schema import schema_text

    click.echo(schema_text(kind), nl=False)
