"""Write a commented study file from a few answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chip_core import recipes
from chip_core.config.trial import BenchmarkConfig, BenchmarksConfig
from chip_core.config.validation import find_key_problem
from chip_core.utils.errors import UserError
from orchestrator.study.editor_schema import STUDY_SECTIONS
from orchestrator.study.json_schema import schema_comment
from orchestrator.study.load import load_study
from orchestrator.study.metrics import metric_goals
from orchestrator.study.model import format_level


@dataclass(frozen=True, kw_only=True)
class StudyAnswers:
    """What a user enters to create a study."""

    name: str
    question: str
    recipe: str
    factors: Mapping[str, Sequence[Any]]  # levels by dotted key
    seeds: int  # number of seeds
    benchmarks: Sequence[str]
    primary: str | None  # metric, or None for a study without one


def parse_factor(text: str) -> tuple[str, list[Any]]:
    """Parse a factor written as `key=level,level` to its key and its levels, read as YAML.

    Raises:
        UserError: the text is not such a factor.
    """
    key, separator, levels = text.partition("=")
    key = key.strip()
    if not separator or not levels.strip():
        raise UserError(
            f"'{text}' is not a factor: write a key and its levels, such as objective=dpo,chip"
        )
    problem = find_key_problem(key)
    if problem is not None:
        raise UserError(problem)
    if key.split(".")[0] in STUDY_SECTIONS:
        raise UserError(f"'{key}' cannot be a factor: the study has its own `{key.split('.')[0]}`")
    if levels.rstrip().endswith(","):
        raise UserError(f"'{text}' ends with a comma: add a level after it, or remove it")
    parsed_levels = recipes.parse_yaml(f"[{levels}]", key)
    return key, list(parsed_levels)


def benchmark_metrics(benchmarks: Sequence[str]) -> list[str]:
    """Return the metrics that a study with these benchmarks reports.

    Raises:
        UserError: there is no such benchmark.
    """
    problems: list[str] = []
    goals = metric_goals(
        BenchmarksConfig(report=tuple(BenchmarkConfig(name=name) for name in benchmarks)),
        lambda key, what: problems.append(what),
    )
    if problems:
        raise UserError("\n".join(problems))
    return list(goals)


def format_study_file(answers: StudyAnswers, folder: Path) -> str:
    """Return the text of a study file.

    Args:
        answers: what the user entered.
        folder: the folder of the file.
    """
    baseline = {key: levels[0] for key, levels in answers.factors.items()}
    lines = [
        schema_comment("study", folder),
        "# All keys and their meanings: docs/study-files.md.",
        f"study: {_to_yaml(answers.name)}",
        f"question: {_to_yaml(answers.question)}",
        "# The configuration that all cells start from.",
        f"recipe: {_to_yaml(answers.recipe)}",
        "# What is varied: a dotted key of the recipe, and its levels.",
        "factors:",
        *(f"  {key}: {_to_yaml(list(levels))}" for key, levels in answers.factors.items()),
        "# A factor that applies only for some levels of another; cells to leave out; a design:",
        "# when: {FACTOR: {OTHER: LEVEL}}",
        "# exclude: [{FACTOR: LEVEL}]",
        "# design: one_at_a_time",
        "# A count, or a list. Intervals that cover the randomness of training need two or more.",
        f"seeds: {answers.seeds}",
        "# The cell that others are compared with.",
        f"baseline: {_to_yaml(baseline)}",
        "# `report` is shown in the table; `select` may only be used to choose settings.",
        "benchmarks:",
        f"  report: {_to_yaml(list(answers.benchmarks))}",
        "  select: []",
    ]
    if answers.primary is not None:
        lines += [
            "# Add smallest_difference, in points: without it no two arms can be called equal.",
            f"primary: {{metric: {_to_yaml(answers.primary)}}}",
        ]
    return "\n".join(lines) + "\n"


def write_study(answers: StudyAnswers, path: Path) -> None:
    """Write a study file, and check it as a run does.

    Raises:
        UserError: the file exists, cannot be written, or the answers are not a valid study. The
            file is removed in the last case.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(format_study_file(answers, path.parent))
    except FileExistsError:
        raise UserError(f"{path}: already exists: choose another file with --out") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        load_study(path)
    except BaseException:
        path.unlink()
        raise


def _to_yaml(value: Any) -> str:
    """Format a value as one line of YAML."""
    if isinstance(value, dict):
        pairs = (f"{_to_yaml(key)}: {_to_yaml(entry)}" for key, entry in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_to_yaml, value))}]"
    if not isinstance(value, str):
        return format_level(value)
    # Dumped as an entry of a list, so that a string with a comma or a bracket is quoted.
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip().removeprefix("[").removesuffix("]")
