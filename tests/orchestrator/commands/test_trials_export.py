"""A trial by its name, and its model as a folder to serve."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from chip_core.results import TrialResult
from chip_core.trial import run_trial
from chip_core.utils.files import write_json
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger

from ..program import run_program

SMALL = """
study: small
recipe: shapes
factors:
  language_model: [full, lora]
  training.max_steps: [1]
  training.batch_size: [2]
  engine.threads: [1]
seeds: [0]
benchmarks:
  report: [{name: shapes, limit: 2}]
"""
ARM = {"full": "full, 1, 2, 1, seed 0", "lora": "lora, 1, 2, 1, seed 0"}


@pytest.fixture
def trained_study(plan_of: Callable[..., Plan], tmp_path: Path) -> tuple[Path, Plan]:
    workdir = tmp_path / "runs"
    plan = plan_of(SMALL)
    ledger = Ledger(workdir)
    for trial in plan.trials[1:]:
        folder = f"trials/{trial.fingerprint[:16]}/attempt-1"
        result = run_trial(trial.config, folder=workdir / folder)
        ledger.record_start(trial, "small", 1)
        ledger.record_result(trial, "small", 1, folder, result)
    return workdir, plan


def test_export_by_name_and_by_fingerprint(
    trained_study: tuple[Path, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, plan = trained_study
    mark = plan.trials[1].fingerprint
    by_name, by_mark, merged = tmp_path / "name", tmp_path / "mark", tmp_path / "merged"
    assert run_program("export", ARM["full"], by_name, "--workdir", workdir) == 0
    assert run_program("export", mark[:8], by_mark, "--workdir", workdir, "--merge") == 0
    assert "nothing to merge" in capsys.readouterr().out
    one, other = (load_file(folder / "model.safetensors") for folder in (by_name, by_mark))
    assert all(torch.equal(one[name], other[name]) for name in one)

    adapter = tmp_path / "adapter"
    assert run_program("export", ARM["lora"], adapter, "--workdir", workdir) == 0
    assert "trained_parts.safetensors: --merge makes one model" in capsys.readouterr().out
    assert (adapter / "adapter_config.json").exists()
    assert run_program("export", ARM["lora"], merged, "--workdir", workdir, "--merge") == 0
    model = AutoModelForImageTextToText.from_pretrained(merged)
    assert not any(".lora_" in name for name in model.state_dict())
    assert (merged / "processor_config.json").exists()


def test_what_cannot_be_exported_is_told(
    trained_study: tuple[Path, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, plan = trained_study

    def complaint(*arguments: object) -> str:
        assert run_program("export", *arguments) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert re.search(
        "did you mean 'full, 1, 2, 1, seed 0'",
        complaint("full, 1, 2, 1, seed 1", out, "--workdir", workdir),
    )
    assert "no trained trial in" in complaint("chip", out, "--workdir", tmp_path / "nowhere")
    out.mkdir()
    (out / "mine").touch()
    assert "is not empty" in complaint(ARM["full"], out, "--workdir", workdir)
    other = plan.trials[1].fingerprint[::-1]  # the same arm in another study
    _record_trial(workdir, plan, other)
    assert "matches more than one trial: use a fingerprint" in complaint(
        ARM["full"], tmp_path / "new", "--workdir", workdir
    )


def _record_trial(workdir: Path, plan: Plan, fingerprint: str) -> None:
    from dataclasses import replace

    trial = replace(plan.trials[1], fingerprint=fingerprint)
    result = TrialResult(steps=1, evaluations={}, seconds={})
    write_json(workdir / "elsewhere" / "result.json", asdict(result))
    Ledger(workdir).record_result(trial, "other", 1, "elsewhere", result)
