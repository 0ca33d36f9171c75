"""chip-ablate pairs, as a user types it: its folder is checked, and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chip_core import recipes
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.trial import run_trial

from ..program import run_program


def run_pairs(*further: object) -> int:
    torch.set_num_threads(1)
    return run_program(
        *("pairs", "shapes", "--prompts", "shapes", "--limit", 8, "-n", 4, "--temperature", 1.5),
        *("--max-new-tokens", 32, "--out", "mine", *further),
    )


def test_what_it_writes_is_checked_and_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pairs("--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["prompts"] == 8 and printed["folder"] == "mine"
    assert printed["pairs"] + sum(printed["dropped"].values()) == 8
    assert run_program("data", "check", "mine", "--model", "shapes") == 0
    tree = recipes.read_yaml(recipes.find_recipe("shapes"))
    for key, value in {
        "data": {"source": str(tmp_path / "mine")},
        "training.max_steps": 1,
        "training.batch_size": 2,
        "benchmarks": {},
    }.items():
        set_key(tree, key, value)
    result = run_trial(parse_trial_config(tree, "test"), folder=tmp_path / "trial")
    assert result.steps == 1 and result.data["pairs"] == printed["pairs"]


def test_what_it_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for further, told in (
        (("--rank", "chiar"), "ranker: unknown level 'chiar': did you mean 'chair'"),
        (("--set", "seed=1"), "--set seed: is not a key of the judge"),
        (("--rank", "judge"), "ranker judge: there is no judge: name one by judge.model"),
        (("--temperature", "0"), "too small"),
        (("--top-p", "1.5"), "too large"),
    ):
        assert run_pairs(*further) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert told in said
    assert not (tmp_path / "mine").exists()
