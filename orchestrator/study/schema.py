"""Parse a study file, even if some of its keys are invalid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chip_core import recipes
from chip_core.config.trial import BenchmarksConfig, EvaluationConfig
from chip_core.config.validation import explain_errors
from orchestrator.study.early_stopping import EarlyStopping
from orchestrator.study.editor_schema import FactorsSchema, Seeds
from orchestrator.study.limits import Budget, Limits
from orchestrator.study.metrics import DeclaredFile, PublishedFile
from orchestrator.study.model import Design
from orchestrator.study.search import TuneFile


class StudyFile(BaseModel):
    """A study: a question, a recipe, what is varied, seeds, benchmarks (docs/study-files.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    study: str = Field(description="its name: letters, digits, '-', '_' and '.'")
    question: str = Field("", description="the question that it answers, in a sentence")
    recipe: str = Field(
        "shapes",
        description="the base configuration: a shipped recipe's name, or a file next to the "
        "study's",
        examples=recipes.recipe_names(),
    )
    # A list of levels, or levels by name: checked with the recipe.
    factors: Annotated[dict[str, Any], FactorsSchema] = Field(
        description="what is varied: a dotted key and its levels, or a name and levels by name"
    )
    when: dict[str, dict[str, Any] | list[dict[str, Any]]] = Field(
        {}, description="for a factor: the pattern, or patterns, of the cells in which it applies"
    )
    design: Design = Field(
        "grid",
        description="grid: every cell; one_at_a_time: the baseline and what differs from it in one "
        "factor; leave_one_out: the baseline, and each factor put back to its first level; cells: "
        "those listed under `cells`",
    )
    cells: list[dict[str, Any]] = Field([], description="the cells of `design: cells`")
    include: list[dict[str, Any]] = Field(
        [], description="patterns: only cells that match one of them are kept"
    )
    exclude: list[dict[str, Any]] = Field(
        [], description="patterns of cells to leave out, even if they match `include`"
    )
    seeds: Seeds = Field([0], description="a count, or a list of distinct whole numbers from 0")
    baseline: dict[str, Any] | None = Field(
        None, description="the cell that others are compared with: a level of each factor"
    )
    placebo: bool = Field(
        False,
        description="true: add an arm that differs from the baseline only in its seeds, to show "
        "what no effect looks like",
    )
    benchmarks: BenchmarksConfig | None = Field(
        None, description="the benchmarks that trained models are scored on"
    )
    evaluation: EvaluationConfig | None = Field(
        None, description="the engine that answers benchmarks, instead of the recipe's"
    )
    primary: DeclaredFile | None = Field(None, description="the metric the question is about")
    secondary: list[DeclaredFile] = Field([], description="metrics that get a verdict too")
    exploratory: bool = Field(
        False,
        description="true: an exploratory study, whose p-values bound the share of false findings",
    )
    published: list[PublishedFile] = Field(
        [],
        description="published figures, each with its source: shown next to the study's, never "
        "mixed with them",
    )
    tune: TuneFile | None = Field(
        None,
        description="the hyper-parameters that every arm chooses for itself on `select` before "
        "its seeds run",
    )
    budget: Budget | None = Field(
        None,
        description="bounds on the remaining work: what does not fit is left out and reported",
    )
    limits: Limits | None = Field(
        None, description="limits at which each run of it stops, even if work is left"
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="cuts trainings that fall behind the others of a run; off by default"
    )


def read_study_file(path: Path) -> tuple[StudyFile, list[str], frozenset[str]]:
    """Parse a study file: return its contents, the problems of its keys and the invalid keys.

    Invalid keys are left out of the contents, so that the others are checked too and every problem
    is reported at once.
    """
    raw = recipes.read_yaml(path)
    try:
        return StudyFile.model_validate(raw), [], frozenset()
    except ValidationError as error:
        problems = explain_errors(error, StudyFile, str(path))
        invalid_keys = frozenset(str(problem["loc"][0]) for problem in error.errors())
    valid_values = {key: value for key, value in raw.items() if key not in invalid_keys}
    required_defaults = {"study": "unnamed", "factors": {}}
    return StudyFile.model_validate({**required_defaults, **valid_values}), problems, invalid_keys


def is_consequence(problem: str, source: str, invalid_keys: frozenset[str]) -> bool:
    """Return whether a problem exists only because an invalid key was left out."""
    affected_prefixes = {
        "factors": (
            "factors: is empty",
            "baseline",
            "include",
            "exclude",
            "when",
            "cells",
            "published",
        ),
        "when": ("baseline", "published"),
        "design": ("cells", "published"),
        "cells": ("cells", "published"),
        "benchmarks": ("primary.metric: unknown", "secondary", "published", "tune"),
    }
    return any(
        problem.startswith(f"{source}: {prefix}")
        for key in invalid_keys
        for prefix in affected_prefixes.get(key, ())
    )
