"""`python -m chip_core train`: no Ray, no MLflow, one trial."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chip_core.__main__ import _check_settings, load_configuration, main
from chip_core.config.trial import TrialConfig
from chip_core.results import TrialResult, read_result
from chip_core.utils.errors import UserError

#: The recipe's benchmark asks 1,000 questions.
SHORT = ["benchmarks={}", "training.max_steps=2", "training.batch_size=2", "engine.threads=1"]


def test_the_program_trains_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored = "benchmarks.report=[{name: shapes, limit: 2}]"
    out = tmp_path / "out"
    assert main(["train", "shapes", "--set", *SHORT, scored, "--out", str(out)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = read_result(out)
    assert result is not None
    assert last == {"folder": str(out), "steps": 2, "metrics": result.metrics}
    assert (out / "model" / "model.safetensors").exists()
    assert main(["train", "shapes", "--out", str(out)]) == 2  # nothing is written over
    assert "holds a finished trial" in capsys.readouterr().err


def test_the_reference_is_kept_where_a_folder_for_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "cache")
    changes = [*SHORT, "data.limit=4", "objective=dpo"]
    for out, made in (("one", True), ("two", False)):
        given = ["--set", *changes, "--out", str(tmp_path / out), "--cache", cache]
        assert main(["train", "shapes", *given]) == 0
        assert ("reference pass 4/4" in capsys.readouterr().out) == made
        result = read_result(tmp_path / out)
        assert result is not None
        assert result.engine["reference"] == "stored"
    off = ["--set", *changes, "reference_cache=off", "--out", str(tmp_path / "x"), "--cache", cache]
    assert main(["train", "shapes", *off]) == 2
    assert "--cache: reference_cache is off" in capsys.readouterr().err


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    changes = [*SHORT, "training.max_steps=16", "engine.checkpoint_every=1"]
    command = ["train", "shapes", "--set", *changes, "--out"]
    process = subprocess.Popen([sys.executable, "-m", "chip_core", *command, str(tmp_path / "cut")])
    while not list((tmp_path / "cut" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert main([*command, str(tmp_path / "cut")]) == 2  # not by accident
    assert main([*command, str(tmp_path / "cut"), "--resume", str(tmp_path / "cut")]) == 0
    assert main([*command, str(tmp_path / "whole")]) == 0
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("cut", "whole"))
    assert one.read_bytes() == other.read_bytes()
    result = read_result(tmp_path / "cut")
    assert result is not None
    assert "resumed after step" in result.notes[-1]


def test_a_trial_cut_short_while_it_was_scored_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = "benchmarks.report=[{name: shapes, limit: 2}]"
    out = tmp_path / "out"
    command = ["train", "shapes", "--out", str(out), "--set", *SHORT, scored]
    assert main(command) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    weights = (out / "model" / "model.safetensors").read_bytes()
    (out / "result.json").unlink()
    assert main([*command, "--resume", str(out)]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["metrics"] == whole["metrics"]
    assert again["steps"] == whole["steps"]  # those of the model that was taken over
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    (out / "result.json").unlink()
    assert main([*command, "optimizer.lr=1", "--resume", str(out)]) == 2
    assert "out holds a model trained with other settings" in capsys.readouterr().err
    (out / "config.json").write_text("{}")
    assert main([*command, "--resume", str(out)]) == 2
    assert "holds a model, but no config.json that describes it" in capsys.readouterr().err


def test_a_model_of_before_there_was_a_choice_was_trained_without_transparency(
    tmp_path: Path,
) -> None:
    config = TrialConfig.model_validate({"model": "shapes", "data": {"source": "./rows.jsonl"}})
    written = config.model_dump(mode="json")
    del written["data"]["transparency"]
    (tmp_path / "model").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="holds a model trained with other settings"):
        _check_settings(config, tmp_path)
    dropped = {**written, "data": {**written["data"], "transparency": "drop"}}
    _check_settings(TrialConfig.model_validate(dropped), tmp_path)


def test_every_problem_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shapes", "--set", "optimizer.rate=1", "training"]) == 2
    told = capsys.readouterr().err
    assert "unknown key 'optimizer.rate'" in told
    assert "--set training: is not key=value" in told
    assert main(["train", "shaps"]) == 2
    assert "did you mean 'shapes'" in capsys.readouterr().err
    assert main(["train", "shapes", "--set", "model=./nowhere"]) == 2
    assert "model.path: no folder nowhere" in capsys.readouterr().err
    broken = ["model=~nobody-here/x", "data.source=./absent.jsonl"]
    assert main(["train", "shapes", "--set", *broken]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "chip_core: model.path: no folder ~nobody-here/x: name a folder with a Hugging Face model, "
        "or a hub name",
        "chip_core: data.source: no file ./absent.jsonl: name a file, a folder, a glob, or "
        "owner/name on the hub",
    ]


def test_the_released_form_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*_: object, **__: object) -> TrialResult:
        return TrialResult(steps=1, evaluations={}, seconds={})

    monkeypatch.setattr("chip_core.trial.run_trial", trained)
    for form in ("paper", "released"):
        changes = [f"objective.form={form}", "objective.weights.visual=1"]
        assert main(["train", "shapes", "--out", str(tmp_path / form), "--set", *changes]) == 0
        told = capsys.readouterr().err
        assert ("caution: form 'released' repeats the released code" in told) == (form != "paper")


def test_a_place_that_cannot_be_used_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for out, said in {"file": "File exists", "file/deeper": "Not a directory"}.items():
        assert main(["train", "shapes", "--out", str(tmp_path / out)]) == 2
        assert f"{out} cannot be created ({said}): choose another" in capsys.readouterr().err
    assert main(["train", "shapes", "--resume", str(tmp_path / "no")]) == 2
    assert "no: name an earlier --out" in capsys.readouterr().err


def test_stopped_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chip_core.trial.run_trial", stopped)
    assert main(["train", "shapes", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "chip_core: stopped\n"


def test_a_trial_that_fails_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "shapes", "--set", *SHORT, "data.limit=1", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert capsys.readouterr().err == "chip_core: no full batch: 1 pairs, training.batch_size 2\n"


def test_the_configuration_is_read_without_torch() -> None:
    code = (
        "import sys; from chip_core.__main__ import load_configuration; "
        "load_configuration('qwen2.5-vl-3b'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_program_imports_neither_ray_nor_mlflow() -> None:
    code = "import sys, chip_core.trial; sys.exit(any(m in sys.modules for m in ('ray', 'mlflow')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_notebooks_five_lines(tmp_path: Path) -> None:
    config = load_configuration("shapes", ["objective=dpo", *SHORT])
    assert config.objective.preset == "dpo"
    assert config.training.max_steps == 2
