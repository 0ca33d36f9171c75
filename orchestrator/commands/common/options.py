"""Define the options and arguments that commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.commands.common.output import json_option
from orchestrator.commands.common.param_types import (
    IntegerType,
    OverrideType,
    PathType,
    SeedsType,
    TextType,
)

if TYPE_CHECKING:
    from chip_core.config.benchmark import DataPaths
    from orchestrator.plan.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


def combine_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options to a command; its help lists the last one first."""

    def decorate(command: F) -> F:
        for option in options:
            command = option(command)
        return command

    return decorate


def is_on_command_line(parameter: str) -> bool:
    """Return whether a parameter was given on the command line, not by default or environment."""
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE


def make_workdir_option(text: str) -> Callable[[F], F]:
    """Return the option for the work directory."""
    return click.option(
        "--workdir",
        type=PathType("folder", uri_hint="give a folder here, and the address as --storage"),
        default=Path("chip-runs"),
        show_default=True,
        help=text,
    )


def make_benchmark_data_option(text: str, *, show_envvar: bool = False) -> Callable[[F], F]:
    """Return the option for the folder of benchmarks' files."""
    return click.option(
        "--benchmark-data",
        type=PathType(is_local=False),
        envvar="CHIP_ABLATE_BENCHMARK_DATA",
        show_envvar=show_envvar,
        help=text,
    )


def make_protocol_option(text: str) -> Callable[[F], F]:
    """Return the option for how answers are made and read."""
    return click.option(
        "--protocol",
        type=click.Choice(["official", "corrected", "chip"]),
        default="official",
        show_default=True,
        help=text,
    )


def make_override_option(text: str) -> Callable[[F], F]:
    """Return the repeatable option that sets keys."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        type=OverrideType(),
        metavar="KEY=VALUE",
        help=text,
    )


#: The default work directory, which has all files of a study.
workdir_option = make_workdir_option("Folder of runs, results and reports.")

tracking_option = click.option(
    "--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db."
)

#: Where benchmarks' data are.
data_path_options = combine_options(
    make_benchmark_data_option(
        "Folder with the benchmarks' files, each in a folder with the benchmark's name."
    ),
    click.option(
        "--judge-replies",
        type=PathType(is_local=False),
        help="Use existing replies instead of a judge.",
    ),
)

#: STUDY and the options on a study and its data.
study_options = combine_options(
    click.argument("study", type=TextType()),
    click.option(
        "--recipe",
        type=TextType(),
        help="Use this recipe instead of the study's; makes a variant of the study.",
    ),
    click.option(
        "--seeds",
        type=SeedsType(),
        help="Further seeds for the study: --seeds 3 4. If all are the study's own, run only "
        "these.",
    ),
    make_override_option("Change a key of the recipe; makes a variant of the study."),
    workdir_option,
    data_path_options,
    json_option(),
)

#: How a model without a study is loaded and asked.
model_options = combine_options(
    click.option(
        "--batch", type=IntegerType(1), default=64, show_default=True, help="Answered together."
    ),
    click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True),
    click.option(
        "--base",
        type=TextType(),
        help="A PEFT folder's base model, if it is not the one that the folder names.",
    ),
)


def resolve_data_paths(
    benchmark_data: Path | None, judge_replies: Path | None = None, **other_paths: Path
) -> DataPaths:
    """Return the data paths as absolute paths, which workers elsewhere can use.

    Raises:
        UserError: a given path does not exist, whether or not it will be needed.
    """
    from chip_core.config.benchmark import DataPaths
    from chip_core.utils.errors import ConfigError
    from chip_core.utils.files import PathKind, expand_path, find_path_problem

    kinds: dict[str, tuple[Path | None, PathKind]] = {
        "benchmark_data": (benchmark_data, "folder"),
        "judge_replies": (judge_replies, "file"),
    }
    paths: dict[str, Path] = {}
    problems = []
    for name, (path, kind) in kinds.items():
        if path is None:
            continue
        paths[name] = expand_path(str(path)).absolute()
        problem = find_path_problem(paths[name], kind)
        option = f"--{name.replace('_', '-')}"
        if problem is not None:
            problems.append(f"{option}: {path}: {problem}")
        elif not paths[name].exists():
            problems.append(f"{option}: no {kind} {path}")
    if problems:
        raise ConfigError(problems)
    return DataPaths(**paths, **other_paths)


def load_plan(
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

    The study is given by path, by the name of a shipped one, or by the name of one that ran in the
    work directory.
    """
    from orchestrator.plan.plan import make_plan
    from orchestrator.plan.snapshot import find_run_study, read_identities
    from orchestrator.state.integrity import inspect_plan
    from orchestrator.state.ledger import Ledger
    from orchestrator.study.load import find_study, load_study
    from orchestrator.study.model import StudyChanges

    changes = StudyChanges(recipe=recipe, seeds=seeds, overrides=unique_values("--set", overrides))
    data_paths = resolve_data_paths(benchmark_data, judge_replies)
    snapshot = find_run_study(workdir, study)
    if snapshot is None:
        loaded_study = load_study(find_study(study), changes)
    else:
        loaded_study = load_study(snapshot.path, snapshot.merge_changes(changes))
        data_paths = snapshot.merge_data_paths(data_paths)
    plan = make_plan(
        loaded_study,
        data_paths=data_paths,
        known_identities=read_identities(workdir, loaded_study.name),
    )
    return (
        inspect_plan(plan, Ledger(workdir, writable=False), workdir)
        if loaded_study.tune is not None
        else plan
    )


def unique_values(option: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return key -> value of a repeatable option.

    Raises:
        UserError: a key is given twice: only one of its values would be used.
    """
    from chip_core.utils.errors import UserError

    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise UserError(f"{option}: {key}: is given twice: give it once")
        values[key] = value
    return values
