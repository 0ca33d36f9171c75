"""Malformed recipes: told through the study that names them, nothing written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from chip_core import recipes
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import parse_trial_config
from chip_core.utils.errors import ConfigError

from . import refusals
from .test_study_files import hostile, make_bomb

KIND = "recipes"
STUDY = "study: small\nrecipe: own.yaml\nfactors: {vision_encoder: [frozen, trained]}\n"
RECIPES: dict[str, str] = {
    "empty": "",
    "a list": "- model: shapes",
    "no model": "seed: 1",
    "a bomb": make_bomb(8),
    "deep": "model: " + "[" * 500 + "]" * 500,
    "an object": "model: !!python/object/apply:os.system ['touch pwned']",
    "an unknown key": "model: shapes\nmodell: shapes",
    "a key of Python's": "model: shapes\n__init__: {}",
    "a number for a model": "model: 5",
    "a model in lists": "model: [shapes]",
    "a model's folder": "model: /nowhere/at/all",
    "a model that climbs": "model: ../../../../etc",
    "a model of a null byte": 'model: "\\0"',
    "an unknown precision": "model: {path: shapes, dtype: int4}",
    "trust that is not a switch": "model: {path: shapes, trust_remote_code: perhaps}",
    "code of a branch": "model: {path: owner/name, trust_remote_code: true}",
    "a huge batch": f"model: shapes\ntraining: {{batch_size: {'9' * 30}}}",
    "a batch of 0": "model: shapes\ntraining: {batch_size: 0}",
    "half an epoch": "model: shapes\ntraining: {epochs: 0.5}",
    "a negative rate": "model: shapes\noptimizer: {lr: -1}",
    "no rate": "model: shapes\noptimizer: {lr: .nan}",
    "an infinite clip": "model: shapes\noptimizer: {clip: .inf}",
    "three betas": "model: shapes\noptimizer: {betas: [0.9, 0.9, 0.9]}",
    "a seed below 0": "model: shapes\nseed: -1",
    "a seed too large": "model: shapes\nseed: 9223372036854775808",
    "nothing trained": "model: shapes\nprojector: frozen\nlanguage_model: frozen",
    "no layer": "model: shapes\nlora: {targets: []}",
    "a weight below 0": "model: shapes\nobjective: {custom: {'os:system': -1}}",
    "a term of nothing": "model: shapes\nobjective: {custom: {'os:nothing': 1}}",
    "a weight of NaN": "model: shapes\nobjective: {weights: {response: .nan}}",
    "an unknown term": "model: shapes\nobjective: {terms: [respnse]}",
    "no term": "model: shapes\nobjective: {terms: []}",
    "no pipeline": "model: shapes\nrejected_image: {strategy: inpaint, inpaint: {path: /nowhere}}",
    "a pipeline no file can be": (
        f"model: shapes\nrejected_image: {{strategy: inpaint, inpaint: {{path: {'p' * 5000}}}}}"
    ),
    "a timestep below 0": "model: shapes\nrejected_image: {diffusion: {timestep: -1}}",
    "data from afar": "model: shapes\ndata: {source: 'http://127.0.0.1/a.parquet'}",
    "data that are a device": "model: shapes\ndata: {source: /dev/zero}",
    "no data": "model: shapes\ndata: {source: ''}",
    "a split of nothing": "model: shapes\ndata: {source: /etc, split: '../..'}",
    "images nowhere": "model: shapes\ndata: {source: /a.jsonl, image_root: /nowhere}",
    "minus one worker": "model: shapes\nengine: {workers_per_trial: -1}",
    "GPUs of NaN": "model: shapes\nengine: {gpus_per_worker: .nan}",
}


@pytest.mark.parametrize("name", RECIPES)
def test_by_hand(tmp_path: Path, name: str) -> None:
    (tmp_path / "own.yaml").write_text(RECIPES[name])
    (tmp_path / "study.yaml").write_text(STUDY)
    refusals.expect_program_refusal(
        KIND, tmp_path, "plan", str(tmp_path / "study.yaml"), "--workdir", str(tmp_path / "runs")
    )
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.lr",
        "=1",
        "optimizer.lr=",
        "optimizer.lr=[",
        "optimizer.lr=.nan",
        f"optimizer.lr={'9' * 5000}",
        "optimizer.lr=!!python/name:os.system",
        "__class__=1",
        "optimizer.lr.real=1",
        f"{'optimizer.' * 500}lr=1",
        "seed=1",
        'model="\\0"',
    ],
)
def test_changes_of_the_command_line(tmp_path: Path, change: str) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("own.yaml", "shapes"))
    where = str(tmp_path / "runs")
    refusals.expect_program_refusal(
        KIND, tmp_path, "plan", str(tmp_path / "study.yaml"), "--set", change, "--workdir", where
    )


def list_leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of each value of a tree, sections included."""
    found = []
    for key, value in tree.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += list_leaves(value, (*path, key))
    return found


WHOLE = TrialConfig.model_validate({"model": "shapes"}).model_dump(mode="json")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(path=st.sampled_from(list_leaves(WHOLE)), value=hostile)
def test_by_hypothesis(path: tuple[str, ...], value: Any) -> None:
    """Every value of a whole recipe is replaced by one that is none."""
    tree = copy.deepcopy(WHOLE)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    try:
        read = recipes.parse_yaml(yaml.safe_dump(tree), "own.yaml")
        parse_trial_config(read, "own.yaml")
    except ConfigError as error:
        assert all(line.startswith("own.yaml") for line in error.problems)
        refusals.count_refusal(f"{KIND}, generated", error.problems[0])
