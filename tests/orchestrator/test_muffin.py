"""A study on a tiny Muffin, from its released checkpoint's form on; and the recipe's plans."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from chip_core.models.muffin.convert import convert
from chip_core.utils.errors import ConfigError
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import make_plan
from orchestrator.run import run_study
from orchestrator.study.load import load_study
from orchestrator.study.model import StudyChanges

from ..chip_core.models.muffin import checkpoints
from .fakes import FakeTracker

STUDIES = sorted((Path(__file__).parents[2] / "ablations").glob("*.yaml"))

STUDY = """
study: labels
recipe: tiny.yaml
factors:
  objective: [dpo, chip]
  training.label_rule: [clean, released]
exclude:
  - {objective: dpo, training.label_rule: clean}
seeds: [0]
baseline: {objective: dpo, training.label_rule: released}
benchmarks:
  report: [{name: shapes, limit: 3}]
primary: {metric: shapes/chair_i, goal: minimize}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    source = checkpoints.write_checkpoint(tmp_path / "released")
    convert(source, tmp_path / "muffin", vision_heads=checkpoints.HEADS)
    recipe = {
        "model": str(tmp_path / "muffin"),
        "data": {"source": "shapes", "limit": 8},
        "optimizer": {"lr": 1e-3},
        "training": {"batch_size": 4, "max_steps": 2},
        "engine": {"threads": 1, "micro_batch": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    file = tmp_path / "labels.yaml"
    file.write_text(STUDY)
    return file


@pytest.mark.usefixtures("blank_figures")
def test_a_study_from_end_to_end(study: Path, tmp_path: Path) -> None:
    plan = make_plan(load_study(study))
    outcome = run_study(
        plan,
        workdir=tmp_path / "runs",
        executor=InlineExecutor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    assert not outcome.failed
    assert outcome.executed == 4  # base, and three arms
    # A random model names nothing, so nothing that is not there either: CHAIR is undefined.
    covered = [row.figures["shapes/cover"].mean for row in outcome.summary.rows]
    assert covered == [0.0] * 4
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("result.json")]
    trained = [result for result in results if result["steps"]]
    assert [result["steps"] for result in trained] == [2, 2, 2]
    # Each arm reads each of the 8 samples once, and a pass is made from 1.25 times on. Two arms
    # score by the released rule and share its text pass; the third's is its own, and so is chip's
    # over rejected images.
    references = sorted(result["engine"]["reference"] for result in trained)
    assert references == ["live", "partly stored", "stored"]
    assert {result["engine"]["prefix_sharing"] for result in trained} == {"on"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_plans_on_the_recipe(path: Path) -> None:
    study = load_study(path, StudyChanges(recipe="muffin-13b"))
    plan = make_plan(study)
    assert study.name == f"{path.stem}@muffin-13b"
    assert plan.trials
    assert all(trial.config.training.epochs == 3 for trial in plan.trials)


def test_a_label_rule_is_refused_where_there_is_none(study: Path) -> None:
    shapes = StudyChanges(recipe="shapes")
    complaint = "factors.training.label_rule[1]: released: a llava scores only the response"
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_study(study, shapes)
    plain = STUDY.replace("training.label_rule: [clean, released]", "projector: [trained]")
    plain = re.sub(r"exclude:\n.*\n", "", plain).replace("training.label_rule", "projector")
    study.write_text(plain.replace("projector: released", "projector: trained"))
    assert load_study(study, shapes)
    change = {"training.label_rule": "released"}
    with pytest.raises(ConfigError, match="training.label_rule: released: a llava scores"):
        load_study(study, StudyChanges(recipe="shapes", overrides=change))
    assert load_study(study, StudyChanges(overrides=change))
