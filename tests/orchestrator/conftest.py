"""A study on a recipe whose model's content is given, not read."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.study.load import load_study
from orchestrator.study.model import Study, StudyChanges

from . import fakes
from .program import run_program
from .tuned_study import MetricOfJob, make_result_function

STUDY = """
study: small
question: Which?
recipe: shapes
factors:
  objective: [dpo, chip]
  vision_encoder: [frozen, trained]
seeds: [0, 1]
baseline: {objective: dpo, vision_encoder: frozen}
benchmarks:
  report: [shapes]
primary: {metric: shapes/chair_i, goal: minimize}
"""

#: Small enough to be trained in a test, by `SHORT`.
TINY = """
study: tiny
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 2, max_new_tokens: 2}]
"""
SHORT = {
    "data.limit": 10,
    "training.batch_size": 4,
    "training.epochs": 2,
    "training.max_steps": 4,
}


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[str], Path]:
    """Write a study file and return its path."""

    def write(text: str = STUDY) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def load(write_study: Callable[[str], Path]) -> Callable[..., Study]:
    """Load a study given as text."""

    def loaded(text: str = STUDY, **changes: object) -> Study:
        return load_study(write_study(text), StudyChanges(**changes))

    return loaded


@pytest.fixture
def plan_of(load: Callable[..., Study]) -> Callable[..., Plan]:
    """Plan a study given as text."""

    def planned(text: str = STUDY, **changes: object) -> Plan:
        return make_plan(load(text, **changes), lambda model: {"content": "the model"})

    return planned


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures, but do not turn them into files: that takes seconds."""
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x03\x00\x00\x00\x01\x00"
    monkeypatch.setattr(
        "orchestrator.report.figures.base.render_files", lambda figure: (png, b"%PDF-1.4 blank")
    )


@pytest.fixture
def set_trial_metric(monkeypatch: pytest.MonkeyPatch) -> Callable[[MetricOfJob], None]:
    """Let the fake executor's trials come to the figures of a function of their job."""
    return lambda figure: monkeypatch.setattr(fakes, "make_result", make_result_function(figure))


@pytest.fixture
def run_captured(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the program; return its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_program(*arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
