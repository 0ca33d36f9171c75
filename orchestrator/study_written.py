"""A study file as it is written: its keys, read whatever is wrong with some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chip_core import recipes
from chip_core.config import BenchmarksConfig
from chip_core.validation import explain
from orchestrator.study import Design
from orchestrator.study_declared import DeclaredFile, PublishedFile


class StudyFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    question: str = ""
    recipe: str = "shapes"
    factors: dict[str, Any]  # a list of levels, or levels by name: checked with the recipe
    when: dict[str, dict[str, Any] | list[dict[str, Any]]] = {}
    design: Design = "grid"
    cells: list[dict[str, Any]] = []  # of `design: cells`
    include: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    seeds: Any = [0]  # a count, or a list
    baseline: dict[str, Any] | None = None
    benchmarks: BenchmarksConfig | None = None
    primary: DeclaredFile | None = None
    secondary: list[DeclaredFile] = []
    exploratory: bool = False
    published: list[PublishedFile] = []


def read_written(path: Path) -> tuple[StudyFile, list[str], frozenset[str]]:
    """Return a file as it is written, what is wrong with its shape, and which keys are.

    Keys that are wrong are left out of what is returned, so that the others are checked all the
    same and every problem is told at once.
    """
    raw = recipes.read_yaml(path)
    try:
        return StudyFile.model_validate(raw), [], frozenset()
    except ValidationError as error:
        problems = explain(error, StudyFile, str(path))
        broken = frozenset(str(problem["loc"][0]) for problem in error.errors())
    kept = {key: value for key, value in raw.items() if key not in broken}
    needed = {"study": "unnamed", "factors": {}}
    return StudyFile.model_validate({**needed, **kept}), problems, broken


def follows(line: str, source: str, broken: frozenset[str]) -> bool:
    """Return whether a problem is only there because a key was left out as broken."""
    causes = {
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
        "benchmarks": ("primary.metric: unknown", "secondary", "published"),
    }
    return any(
        line.startswith(f"{source}: {start}") for key in broken for start in causes.get(key, ())
    )
