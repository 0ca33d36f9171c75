"""The command `represent`: a model, and a study's trained models in one common picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from chip_core.models import loading
from chip_core.models.adapters import attach_adapters, write_weights
from chip_core.results import MODEL, TrialResult
from chip_core.shapes import MODEL_FOLDER
from orchestrator.plan.plan import Plan, Trial, make_plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.load import load_study
from orchestrator.tracking.client import MlflowStore
from orchestrator.tracking.views import TrialView

from ..fakes import InlineTracker

STUDY = """
study: small
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0, 1]
baseline: {objective: dpo}
benchmarks:
  report: [shapes]
"""

Run = Callable[..., tuple[int, str, str]]


def write_trained_model(workdir: Path, plan: Plan, trial: Trial, scale: float) -> None:
    """Leave a trained model: the embedded one with its first weights scaled."""
    folder = workdir / "trials" / trial.fingerprint[:16] / "attempt-1"
    shutil.copytree(MODEL_FOLDER, folder / MODEL)
    weights = load_file(MODEL_FOLDER / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("mlp.down_proj.weight"))
    weights[name] = weights[name] * scale
    save_file(weights, folder / MODEL / "model.safetensors", {"format": "pt"})
    result = TrialResult(steps=1, evaluations={}, seconds={})
    Ledger(workdir).record_result(
        trial, plan.study.name, 1, str(folder.relative_to(workdir)), result
    )


def test_a_study_in_one_picture(
    tmp_path: Path, run_captured: Run, with_store: Callable[[Path], Path]
) -> None:
    workdir, file = with_store(tmp_path / "work"), tmp_path / "small.yaml"
    file.write_text(STUDY)
    plan = make_plan(load_study(file))
    dpo, chip = plan.arms
    write_trained_model(workdir, plan, dpo.trials[0], 0.9)
    write_trained_model(workdir, plan, chip.trials[0], 0.5)
    write_trained_model(workdir, plan, chip.trials[1], 0.6)
    tracker = InlineTracker(workdir)
    tracker.open(plan, [_make_view(trial) for trial in plan.trials])
    tracker.close([], "FINISHED", None)

    arguments = ["represent", file, "--workdir", workdir, "--items", 8, "--json"]
    code, printed, complaint = run_captured(*arguments, "--out", tmp_path / "out")
    assert code == 0, complaint
    found = json.loads(printed)
    assert [(row["name"], row["seeds"]) for row in found["rows"]] == [
        ("base (untrained)", [None]),
        ("dpo", [0]),
        ("chip", [0, 1]),
    ]
    assert found["missing"] == ["dpo, seed 1"] and found["items"] == 8 and found["layer"] == 4
    chip_row = found["rows"][2]
    for name, figure in chip_row["figures"].items():
        one, other = (values[name] for values in chip_row["by_seed"])
        assert figure["value"] == pytest.approx((one + other) / 2)
        assert figure["low"] <= figure["value"] <= figure["high"]
    report = workdir / "studies" / "small" / "report"
    for folder in (report, tmp_path / "out"):
        with Image.open(folder / "figures" / "representation.png") as picture:
            assert picture.width > 600
        assert (folder / "figures" / "representation.pdf").read_bytes().startswith(b"%PDF")
        table = (folder / "representation.md").read_text()
        assert "| chip | 2 |" in table and "left out: dpo, seed 1." in table

    store = MlflowStore(workdir)
    store.open("small")
    runs = {run.tags["mlflow.runName"]: run.metrics for run in store.runs()}
    auc = "representation/probe_auc"
    assert runs["chip"][auc] == pytest.approx(chip_row["figures"]["probe_auc"]["value"])
    assert {f"{auc}.low", f"{auc}.high"} <= runs["chip"].keys()
    assert runs["chip, seed 1"][auc] == chip_row["by_seed"][1]["probe_auc"]
    assert auc in runs["base"] and f"{auc}.low" not in runs["chip, seed 1"]


ADAPTED = STUDY.replace("objective: [dpo, chip]", "language_model: [lora]").replace(
    "baseline: {objective: dpo}", "baseline: {language_model: lora}"
)


def write_adapter(workdir: Path, plan: Plan, trial: Trial, written: Callable[[str], str]) -> None:
    """Leave a trained adapter, its weights drawn and named in some way."""
    folder = workdir / "trials" / trial.fingerprint[:16] / "attempt-1"
    model = attach_adapters(loading.load(trial.config.model)[0], trial.config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    write_weights(model, folder / MODEL, trial.config)
    file = folder / MODEL / "adapter_model.safetensors"
    save_file({written(name): value for name, value in load_file(file).items()}, file)
    result = TrialResult(steps=1, evaluations={}, seconds={})
    Ledger(workdir).record_result(
        trial, plan.study.name, 1, str(folder.relative_to(workdir)), result
    )


def test_an_adapter_is_read_where_it_belongs_or_not_at_all(
    tmp_path: Path, run_captured: Run
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(ADAPTED)
    plan = make_plan(load_study(file))
    found = {}
    for name, written in {
        "right": lambda name: name,
        "ddp": lambda name: f"module.{name}",
        "bad": lambda name: name.replace("_proj", "_lin"),
    }.items():
        workdir = tmp_path / name
        write_adapter(workdir, plan, plan.arms[0].trials[0], written)
        found[name] = run_captured("represent", file, "--workdir", workdir, "--items", 4, "--json")
    rows = {name: json.loads(found[name][1])["rows"] for name in ("right", "ddp")}
    assert rows["ddp"] == rows["right"]
    base, arm = (row["figures"] for row in rows["right"])
    assert base != arm
    code, printed, said = found["bad"]
    assert (code, printed) == (2, "")
    line = said.strip().splitlines()[-1]
    assert "lora, seed 0: " in line and "56 of its 56 weights do not exist in it" in line
    assert "Traceback" not in said


def _make_view(trial: Trial) -> TrialView:
    return TrialView(trial=trial, status="FINISHED", metrics={}, folders=[], seconds={}, data={})


def test_a_model_by_itself(tmp_path: Path, run_captured: Run) -> None:
    out: list[Any] = ["--out", tmp_path / "out"]
    code, _, complaint = run_captured(
        "represent", "shapes", "--items", 3, "--pool", "last", "--alone", *out
    )
    assert code == 0, complaint
    found = json.loads((tmp_path / "out" / "representation-alone.json").read_text())
    assert (found["pool"], [row["name"] for row in found["rows"]]) == ("last", ["shapes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shapes"], "--out: name a folder"),
        (["shapes", "--out", "out", "--layer", "7", "--items", "2"], "--layer: 7: the model has"),
        (["shapes", "--out", "out", "--descriptions", "gone.jsonl"], "gone.jsonl cannot be read"),
        (["encoder", "--items", "2"], "study encoder has no trained model"),
        (["encodr"], "no such study file"),
    ],
)
def test_what_a_user_gets_wrong(run_captured: Run, arguments: list[str], said: str) -> None:
    code, _, complaint = run_captured("represent", *arguments)
    assert code == 2 and said in complaint and "Traceback" not in complaint
    assert len([line for line in complaint.splitlines() if "chip-ablate:" in line]) == 1
