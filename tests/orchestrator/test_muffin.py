"""A study on a tiny Muffin, from its released checkpoint's form on; and the recipe's plans."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chip_core.errors import ConfigError
from chip_core.models.muffin import (
    MuffinConfig,
    MuffinForConditionalGeneration,
    MuffinImageProcessor,
    MuffinProcessor,
)
from chip_core.shapes.captions import vocabulary
from chip_core.shapes.world import IMAGE_SIZE
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan import make_plan
from orchestrator.run import run_study
from orchestrator.study_file import Changes, load_study

from .fakes import FakeTracker

PatternMaker = Callable[[str], Path]

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


def muffin(folder: Path) -> Path:
    """Write a tiny Muffin with random weights that knows the embedded world's words."""
    shown = ["<im_patch>", "<im_start>", "<im_end>"]
    roles = ["###", "Human", "Assistant", ":"]
    words = ["[PAD]", "<s>", "</s>", "<unk>", *shown, *roles, *vocabulary()]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", additional_special_tokens=shown, padding_side="left",
    )  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids(shown)
    config = MuffinConfig(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": IMAGE_SIZE, "patch_size": 16, "num_query": 2,
            "max_query_positions": 4,
        },
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2,
        },
        image_token_id=ids[0], image_start_token_id=ids[1], image_end_token_id=ids[2],
    )  # fmt: skip
    torch.manual_seed(0)
    model = MuffinForConditionalGeneration(config)
    model.generation_config.stop_strings = ["###"]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    MuffinProcessor(
        MuffinImageProcessor(size=IMAGE_SIZE), tokenizer, image_seq_length=2
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    recipe = {
        "model": str(muffin(tmp_path / "muffin")),
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
    assert (outcome.executed, outcome.failed) == (4, [])  # base, and three arms
    rows = {row.name: row.figures["shapes/chair_i"] for row in outcome.summary.rows}
    assert len(rows) == 4
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").rglob("result.json")]
    trained = [result for result in results if result["steps"]]
    assert [result["steps"] for result in trained] == [2, 2, 2]
    # Three arms, two label rules: what is scored differs, and so do the stores of the reference.
    assert {result["engine"]["reference"] for result in trained} == {"stored"}
    assert {result["engine"]["prefix_sharing"] for result in trained} == {"on"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_plans_on_the_recipe(path: Path) -> None:
    study = load_study(path, Changes(recipe="muffin-13b"))
    plan = make_plan(study)
    assert study.name == f"{path.stem}@muffin-13b"
    assert plan.trials
    assert all(trial.config.training.epochs == 3 for trial in plan.trials)


def test_a_label_rule_is_refused_where_there_is_none(study: Path) -> None:
    shapes = Changes(recipe="shapes")
    complaint = "factors.training.label_rule[1]: released: a llava scores the response alone"
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_study(study, shapes)
    plain = STUDY.replace("training.label_rule: [clean, released]", "projector: [trained]")
    plain = re.sub(r"exclude:\n.*\n", "", plain).replace("training.label_rule", "projector")
    study.write_text(plain.replace("projector: released", "projector: trained"))
    assert load_study(study, shapes)
    change = {"training.label_rule": "released"}
    with pytest.raises(ConfigError, match="training.label_rule: released: a llava scores"):
        load_study(study, Changes(recipe="shapes", overrides=change))
    assert load_study(study, Changes(overrides=change))
