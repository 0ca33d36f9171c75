"""Options and arguments that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from orchestrator.plan import Plan


#: Where everything of a study lies.
workdir_option = click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default=Path("chip-runs"),
    show_default=True,
    help="Where runs, results and reports lie.",
)


def study_options(command: Any) -> Any:
    """Give a command STUDY and the options that change or place one."""
    for option in (
        click.argument("study"),
        click.option("--recipe", help="In place of the study's recipe: a variant of its own."),
        click.option(
            "--seeds",
            type=Seeds(),
            help="More seeds than the study's: --seeds 3 4. Only its own ones: a part of it.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            type=Override(),
            metavar="KEY=VALUE",
            help="Change a key of the recipe: a variant of its own.",
        ),
        workdir_option,
        *_places_options(),
        click.option("--json", "as_json", is_flag=True, help="Print results as JSON."),
    ):
        command = option(command)
    return command


def _places_options() -> tuple[Any, ...]:
    return (
        click.option(
            "--benchmark-data",
            type=click.Path(path_type=Path),
            envvar="CHIP_ABLATE_BENCHMARK_DATA",
            help="Holds each benchmark's files, in a folder named as it.",
        ),
        click.option(
            "--judge-replies",
            type=click.Path(path_type=Path),
            help="Replies that exist, in place of a judge's.",
        ),
    )


def places_options(command: Any) -> Any:
    """Give a command the options that say where benchmarks' data lie."""
    for option in _places_options():
        command = option(command)
    return command


def absolute(path: Path | None) -> Path | None:
    """Return a path that means the same to workers that run elsewhere."""
    return None if path is None else path.expanduser().absolute()


def planned(
    study: str,
    *,
    workdir: Path,
    benchmark_data: Path | None,
    judge_replies: Path | None,
    recipe: str | None,
    seeds: list[int] | None,
    overrides: Sequence[tuple[str, Any]],
) -> Plan:
    """Return the plan of a study, with the command line's changes.

    It is given by path, by the name of a shipped one, or by the name under which one was run in the
    work directory.
    """
    from chip_core.errors import UserError
    from chip_core.places import Places
    from orchestrator.benchmarks_seen import seen_before
    from orchestrator.integrity import look
    from orchestrator.kept_plans import find_own_study
    from orchestrator.ledger import Ledger
    from orchestrator.plan import make_plan
    from orchestrator.study import Changes
    from orchestrator.study_file import find_study, load_study

    keys = [key for key, _ in overrides]
    for key in dict.fromkeys(keys):
        if keys.count(key) > 1:
            raise UserError(f"--set: {key}: is given twice: give it once")
    changes = Changes(recipe=recipe, seeds=seeds, overrides=dict(overrides))
    places = Places(benchmark_data=absolute(benchmark_data), judge_replies=absolute(judge_replies))
    own = find_own_study(workdir, study)
    if own is None:
        loaded = load_study(find_study(study), changes)
    else:
        loaded = load_study(own.path, own.changed_by(changes))
        places = own.placed_by(places)
    plan = make_plan(loaded, places=places, seen=seen_before(workdir, loaded.name))
    return look(plan, Ledger(workdir, writes=False), workdir) if loaded.tune is not None else plan


class Seeds(click.ParamType[Any]):
    """Whole numbers: `0 1 2` or `0,1,2`."""

    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a list of seeds."""
        try:
            return [int(seed) for seed in str(value).replace(",", " ").split()]
        except ValueError:
            self.fail(f"'{value}' is no list of whole numbers: write --seeds 0 1 2", param, ctx)


class Override(click.ParamType[Any]):
    """A dotted key and its value, read as YAML."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return (key, value)."""
        from chip_core.recipes import parse_yaml

        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"'{value}' is no key=value: write --set optimizer.lr=1e-6", param, ctx)
        return key.strip(), parse_yaml(text, f"--set {key}")
