"""One trial through the one door: determinism, what is trained, what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chip_core.config.trial import TrialConfig
from chip_core.models.loading import has_weights
from chip_core.results import Progress, read_result
from chip_core.shapes import MODEL_FOLDER
from chip_core.trained import (
    TrainedModel,
    adopt_model,
    get_weights_fingerprint,
    hash_weights_content,
    read_trained,
    write_trained,
)
from chip_core.trial import _Attempt, run_trial
from chip_core.trial_context import TrialContext
from chip_core.utils.errors import NonFiniteLossError, TrialError
from chip_core.utils.files import read_records
from chip_core.utils.workers import Workers

Configured = Callable[..., TrialConfig]
SCORED = {"benchmarks": {"report": [{"name": "shapes", "limit": 8}]}}


def test_two_runs_agree_to_the_bit(shapes_config: Configured, tmp_path: Path) -> None:
    config = shapes_config(**SCORED)
    folders = [tmp_path / "one", tmp_path / "two"]
    results = [run_trial(config, folder=folder) for folder in folders]
    assert results[0].metrics == results[1].metrics
    assert set(results[0].metrics) == {
        "shapes/chair_i",
        "shapes/chair_s",
        "shapes/hal",
        "shapes/cover",
    }
    curves = [read_records(folder / "curves.jsonl") for folder in folders]
    for one, other in zip(*curves, strict=True):
        for record in (one, other):
            del record["time"], record["figures"]["tokens_per_second"]
            del record["figures"]["data_wait"]
        assert one == other
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    content, marks = (
        {mark(folder / "model") for folder in folders}
        for mark in (hash_weights_content, get_weights_fingerprint)
    )
    assert (len(content), len(marks)) == (1, 2)  # answers of the one are answers of the other
    assert read_result(folders[0]) == results[0]


@pytest.mark.parametrize(
    ("parallel", "rank", "loads"),
    [
        ("fsdp", 0, True),
        ("fsdp", 1, False),
        ("hsdp", 0, True),
        ("hsdp", 2, False),  # the first of its machine has the first worker's weights too
        ("ddp", 1, True),
        ("auto", 1, True),
    ],
)
def test_of_workers_that_spread_a_model_the_first_alone_loads_it(
    shapes_config: Configured, tmp_path: Path, parallel: str, rank: int, loads: bool
) -> None:
    class Joined(Workers):
        def gather_results(self, make: Callable[[], Any]) -> list[Any]:
            return [make()] * self.size

        def all_gather(self, value: Any) -> list[Any]:
            return ["one machine"] * 2 + ["another"] * 2

    config = shapes_config(engine__parallel=parallel, language_model="lora")
    attempt = _Attempt(config, TrialContext(folder=tmp_path))
    attempt._workers, attempt._device = Joined(rank=rank, size=4), torch.device("cpu")
    loaded = attempt._load_model(None, train=True)
    assert has_weights(loaded.model) == loads
    assert loaded.parallelism == ("ddp" if parallel == "auto" else parallel)
    assert any(".lora_A." in name for name, _ in loaded.model.named_parameters())
    assert has_weights(attempt._load_model(None, train=False).model)  # who answers has it whole


def test_the_seed_changes_the_figures(shapes_config: Configured, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        run_trial(shapes_config(seed=seed), folder=folder)
        losses.append([r["figures"]["loss"] for r in read_records(folder / "curves.jsonl")])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("vision_encoder", ["frozen", "trained"])
@pytest.mark.parametrize("objective", ["dpo", "chip"])
def test_the_vision_encoder_moves_only_where_it_is_trained(
    shapes_config: Configured, tmp_path: Path, vision_encoder: str, objective: str
) -> None:
    config = shapes_config(objective=objective, vision_encoder=vision_encoder)
    run_trial(config, folder=tmp_path)
    before = load_file(MODEL_FOLDER / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    moves: dict[str, float] = {}
    for name in before:
        part = "vision" if "vision_tower" in name else "rest"
        moved = (after[name].float() - before[name].float()).abs().max().item()
        moves[part] = max(moves.get(part, 0.0), moved)
    assert moves["rest"] > 0
    if vision_encoder == "frozen":
        assert moves["vision"] == 0.0
    else:
        assert moves["vision"] > 0.0


def test_curves_hold_what_the_paper_looks_at(shapes_config: Configured, tmp_path: Path) -> None:
    run_trial(shapes_config(), folder=tmp_path)
    records = read_records(tmp_path / "curves.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert set(records[0]["figures"]) == {
        "loss",
        "term/response",
        "term/segment",
        "term/token",
        "term/visual",
        "reward/chosen",
        "reward/rejected",
        "reward/margin",
        "reward/accuracy",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "data_wait",
    }
    # policy = reference at the first step: (1 + 1 + 1)·log 2 and no divergence
    first = records[0]["figures"]
    assert first["term/response"] == pytest.approx(0.693147, abs=1e-5)
    assert first["term/token"] == pytest.approx(0, abs=1e-6)
    assert first["reward/margin"] == pytest.approx(0, abs=1e-5)


def test_accumulation_gives_the_same_figures_to_rounding(
    shapes_config: Configured, tmp_path: Path
) -> None:
    curves = []
    for micro_batch in (1, 4):
        folder = tmp_path / str(micro_batch)
        run_trial(shapes_config(engine__micro_batch=micro_batch), folder=folder)
        curves.append([r["figures"]["loss"] for r in read_records(folder / "curves.jsonl")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_the_untrained_model_is_scored_as_it_is(shapes_config: Configured, tmp_path: Path) -> None:
    # One process scores it, however many the study's trainings have.
    config = shapes_config(**SCORED, engine__workers_per_trial=2)
    result = run_trial(config, folder=tmp_path, untrained=True)
    assert result.steps == 0
    assert not (tmp_path / "model").exists()
    lines = read_records(tmp_path / "responses" / "report-shapes.jsonl")
    assert len(lines) == 8
    assert set(lines[0]) == {"item", "prompt", "response", "truth"}
    scores = json.loads((tmp_path / "scores" / "report-shapes.json").read_text())
    (chair_s,) = [metric for metric in scores["metrics"] if metric["name"] == "chair_s"]
    hallucinating = sum(item["numerator"] for item in chair_s["items"])
    assert result.metrics["shapes/chair_s"] == pytest.approx(100 * hallucinating / 8)


def test_a_trained_model_can_be_scored_later(shapes_config: Configured, tmp_path: Path) -> None:
    at_once = run_trial(shapes_config(**SCORED), folder=tmp_path / "a")
    run_trial(shapes_config(), folder=tmp_path / "b")
    later = run_trial(
        shapes_config(**SCORED), folder=tmp_path / "c", trained_model=tmp_path / "b" / "model"
    )
    assert later.metrics == at_once.metrics
    assert later.steps == 0


def test_a_loss_that_is_not_finite_stops_before_the_update(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = shapes_config(optimizer__lr=1e30, optimizer__clip=None, training__max_steps=5)
    with pytest.raises(NonFiniteLossError, match=r"(loss|norm) is (nan|inf|-inf) at step \d"):
        run_trial(config, folder=tmp_path)
    assert read_result(tmp_path) is None
    assert not (tmp_path / "model").exists()


def test_a_prompt_longer_than_the_limit_is_told(shapes_config: Configured, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="training.max_length is 20, but a prompt .* takes"):
        run_trial(shapes_config(training__max_length=20), folder=tmp_path)


def test_too_few_pairs_for_a_batch_are_told(shapes_config: Configured, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="no full batch: 3 pairs, training.batch_size 4"):
        run_trial(shapes_config(data__limit=3), folder=tmp_path)


def test_where_the_time_goes_is_told(shapes_config: Configured, tmp_path: Path) -> None:
    seconds = run_trial(shapes_config(**SCORED), folder=tmp_path).seconds
    assert set(seconds) == {
        "imports",
        "check data",
        "model",
        "train",
        "first_step",
        "answer report/shapes",
        "read answers",
        "score report/shapes",
    }
    assert 0 < seconds["first_step"] < seconds["train"]
    waits = [r["figures"]["data_wait"] for r in read_records(tmp_path / "curves.jsonl")]
    assert all(0 < wait < 1 for wait in waits)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"benchmarks": {"select": ["shaps"]}},
            "unknown benchmark 'shaps': did you mean",
        ),
        ({"engine__device": "cuda"}, "engine.device is cuda, but torch finds no GPU: choose auto"),
    ],
)
def test_what_there_is_not_is_told_before_anything_is_trained(
    shapes_config: Configured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrialError, match=expected):
        run_trial(shapes_config(**changes), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told(shapes_config: Configured, tmp_path: Path) -> None:
    told: list[Progress] = []
    run_trial(shapes_config(**SCORED), folder=tmp_path, report=told.append)
    phases = list(dict.fromkeys(progress.phase for progress in told))
    assert phases == ["start", "train", "answer shapes", "score shapes"]
    answers = [one for one in told if one.phase == "answer shapes"]
    assert answers[-1].done == answers[-1].total == 8
    assert told[-1].done == told[-1].total == 1


def test_bf16_trains_and_stays_near(shapes_config: Configured, tmp_path: Path) -> None:
    losses, said = {}, {}
    for dtype in ("fp32", "bf16"):
        folder = tmp_path / dtype
        config = shapes_config(model={"path": "shapes", "dtype": dtype})
        said[dtype] = run_trial(config, folder=folder).engine.get("precision")
        losses[dtype] = [r["figures"]["loss"] for r in read_records(folder / "curves.jsonl")]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]
    precision = "weights bf16, masters fp32, gradients fp32, moments fp32"
    assert said == {"fp32": None, "bf16": precision}
    weights = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}  # what answers


def test_a_trial_killed_while_it_was_scored_goes_on_there(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the training nor an answer is made twice, and the figures are the same."""
    config = shapes_config(**SCORED, engine__generation_batch=2)
    whole = run_trial(config, folder=tmp_path / "whole")

    killed_at: list[int] = []

    def dies(progress: Progress) -> None:
        if progress.phase == "answer shapes" and 0 < progress.done < progress.total:
            killed_at.append(progress.done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(config, folder=tmp_path / "one", report=dies)
    assert read_result(tmp_path / "one") is None

    def trains(*_: object, **__: object) -> None:
        raise AssertionError("it was trained already")

    monkeypatch.setattr("chip_core.trial.Trainer", trains)
    told: list[Progress] = []
    again = run_trial(
        config,
        folder=tmp_path / "two",
        resume_from=tmp_path / "one",
        earlier=[tmp_path / "one"],
        report=told.append,
    )
    assert again.metrics == whole.metrics
    assert (again.steps, again.data) == (whole.steps, whole.data)
    assert again.seconds["train"] > 0
    assert [again.evaluations["report/shapes"].metadata["taken_over"]] == killed_at
    done = [progress.done for progress in told if progress.phase == "answer shapes"]
    assert [done[0]] == killed_at and done[-1] == 8
    assert done == sorted(set(done))
    weights = [tmp_path / name / "model/model.safetensors" for name in ("whole", "two")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (tmp_path / "one" / "model").exists()  # moved, not copied
    assert read_trained(tmp_path / "one") is None


def test_a_model_is_whole_in_one_of_two_folders_at_any_time(tmp_path: Path) -> None:
    (tmp_path / "one" / "model").mkdir(parents=True)
    trained = TrainedModel(steps=3, seconds=1.0)
    assert adopt_model(tmp_path / "one", tmp_path / "two") is None  # not noted as whole
    write_trained(tmp_path / "one", trained)
    write_trained(tmp_path / "two", trained)  # as where it was killed before the move
    assert read_trained(tmp_path / "two") is None
    assert adopt_model(tmp_path / "one", tmp_path / "two") == trained
    assert get_weights_fingerprint(tmp_path / "two" / "model") == trained.mark


def test_what_a_benchmark_lacks_is_said_before_the_training(
    shapes_config: Configured, tmp_path: Path
) -> None:
    config = shapes_config(benchmarks={"report": ["pope", "mmhal"]})
    with pytest.raises(TrialError, match="pope: its questions are in files: .*; mmhal: its quest"):
        run_trial(config, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()
