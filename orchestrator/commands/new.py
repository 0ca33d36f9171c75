"""new, schema: study files from a few answers, and the JSON Schemas that editors read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from orchestrator.commands.common.param_types import Location, Text, Whole

if TYPE_CHECKING:
    from rich.console import Console


T = TypeVar("T")


@click.command(epilog="Example: chip-ablate new --name beta --factor objective.beta=0.1,0.3")
@click.option(
    "--name", type=Text(), help="Of the study; the file is NAME.yaml if not told otherwise."
)
@click.option("--question", type=Text(), help="What it is to answer, in a sentence.")
@click.option("--recipe", type=Text(), help="A shipped recipe's name, or a file.")
@click.option(
    "--factor",
    "factors",
    multiple=True,
    type=Text(),
    metavar="KEY=LEVEL,LEVEL",
    help="What is varied; again for each factor.",
)
@click.option("--seeds", type=Whole(1, 1000), help="How many.")
@click.option(
    "--benchmark", "benchmarks", type=Text(), multiple=True, help="Again for each benchmark."
)
@click.option("--primary", type=Text(), help="The metric that the question is about.")
@click.option("--out", type=Location("file"), help="The file; never written over.")
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
    """Write a study file: asks a few questions, those that no option answers."""
    from rich.console import Console

    from chip_core import recipes
    from chip_core.utils.errors import UserError
    from orchestrator.study.template import StudyAnswers, metrics_of, parse_factor, write_study

    ask = _Asker(Console(stderr=True))
    chosen = name or ask("name", "What is the study called?", str)
    path = out or Path(f"{chosen}.yaml")
    if path.exists():
        raise UserError(f"{path}: is there already: name another file by --out")
    asked = (
        ask("question", "Which question is it to answer?", str) if question is None else question
    )
    base = recipe or ask(
        "recipe",
        f"Which recipe? A file, or one of {', '.join(recipes.recipe_names())}",
        str,
        "shapes",
    )
    read = [parse_factor(text) for text in factors]
    while not read or (not factors and ask.more("Another factor?")):
        read.append(
            ask("factor", "What is varied? A key and its levels, objective=dpo,chip", parse_factor)
        )
    count = seeds or ask("seeds", "How many seeds?", _count, "3")
    named = list(benchmarks) or ask("benchmark", "Which benchmarks?", _known_benchmarks, "shapes")
    metrics = metrics_of(named)
    main = primary or ask(
        "primary", f"Which metric is it about? One of {', '.join(metrics)}", str, metrics[0]
    )
    repeated = sorted({key for key, _ in read if [one for one, _ in read].count(key) > 1})
    if repeated:
        raise UserError(f"--factor: {', '.join(repeated)} is named twice: give its levels at once")
    answers = StudyAnswers(
        name=chosen,
        question=asked,
        recipe=base,
        factors=dict(read),
        seeds=count,
        benchmarks=named,
        primary=main,
    )
    write_study(answers, path)
    command = shlex.join(["chip-ablate", "plan", str(path)])
    click.echo(f"wrote {path}; what it would run: {command}")


class _Asker:
    """Asks until an answer is valid; at the end of input, names the option to use."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(
        self, option: str, text: str, read: Callable[[str], T], default: str | None = None
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
                raise UserError(f"--{option} is not given, and nobody answers: give it") from None
            try:
                if (answer or "").strip():
                    return read(answer.strip())
            except UserError as error:
                self._console.print(str(error), markup=False)

    def more(self, text: str) -> bool:
        """Ask whether to continue; no at the end of input."""
        from rich.prompt import Confirm

        try:
            return Confirm.ask(text, console=self._console, default=False)
        except EOFError:
            return False


def _count(text: str) -> int:
    from chip_core.utils.errors import UserError

    if not text.isdigit() or int(text) < 1:
        raise UserError(f"'{text}' is no count of seeds: write 1 or more")
    return int(text)


def _known_benchmarks(text: str) -> list[Any]:
    from orchestrator.study.template import metrics_of

    names = text.replace(",", " ").split()
    metrics_of(names)
    return names


@click.command(epilog="Example: chip-ablate schema > study.schema.json")
@click.argument("kind", type=click.Choice(["study", "recipe"]), default="study")
def schema(kind: Literal["study", "recipe"]) -> None:
    """Print the JSON Schema of a study file, or of a recipe.

    An editor that knows YAML completes and checks a file whose first line is
    `# yaml-language-server: $schema=study.schema.json`, with the schema beside it.
    """
    from orchestrator.study.json_schema import schema_text

    click.echo(schema_text(kind), nl=False)
