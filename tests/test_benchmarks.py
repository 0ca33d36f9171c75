"""The benchmarks run, and compare what is equal: small, so that they take seconds."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.results import Progress
from orchestrator.executors.base import Job, JobAnswered, JobProgressed, JobStarted

ROOT = Path(__file__).parent.parent


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark of a step, on a model of one layer."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.step")
    workload = importlib.import_module("benchmarks.workload").Workload
    small = functools.partial(
        workload, vocabulary=300, hidden=32, layers=1, chosen=(7, 4), rejected=(5, 9)
    )
    monkeypatch.setattr(module, "Workload", small)
    monkeypatch.setattr(module, "has_trl", lambda: False)
    return module


@pytest.mark.parametrize("objective", ["chip", "dpo"])
def test_the_naive_step_and_ours_have_the_same_gradient(
    step: Any, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--objective", objective, "--image-tokens", "4", "--rounds", "1", "--threads", "1"]
    step.main([*given, "--no-memory", "--json"])
    report = json.loads(capsys.readouterr().out)
    [setting] = report["settings"]
    assert report["machine"]["threads"] == 1
    variants = setting["variants"]
    assert list(variants) == ["naive", *step.OURS, "floor"]
    assert variants["naive"]["naive over this"] == 1
    assert variants["floor"]["this over floor"] == 1
    for name in step.OURS:
        assert variants[name]["gradient apart"] < 1e-5
    counts = [variants[name]["operations over floor"] for name in step.OURS]
    assert all(more > less for more, less in pairwise(counts))
    assert all(figures["seconds"] > 0 for figures in variants.values())


@pytest.mark.slow  # its process imports all anew
def test_memory_is_that_of_one_variant_in_a_process_of_its_own(step: Any) -> None:
    assert step._measure_peak_in_process("dpo", 4, "stored reference") > 0


def test_the_gpu_benchmark_is_the_same_code_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    gpu = importlib.import_module("benchmarks.gpu")
    given = ["--size", "tiny", "--device", "cpu", "--rounds", "1", "--pairs", "1", "--json"]
    gpu.main([*given, "--peak-tflops", "1"])
    report = json.loads(capsys.readouterr().out)
    # 36 image and 20 text tokens twice, chosen (100) twice, rejected (110)
    assert report["unique tokens"] == 2 * (36 + 20) + 2 * 100 + 110
    ways = report["ways"]
    assert list(ways) == ["naive", "live reference", "stored reference"]
    for figures in ways.values():
        seconds = figures["seconds"]["median"]
        assert figures["mfu"] == pytest.approx(
            report["floor operations"] / seconds / 1e12, abs=1e-4
        )


def test_the_cpu_seconds_of_a_command_are_those_of_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    estimate = importlib.import_module("benchmarks.estimate")
    burn = (
        "import json, time\n"
        "while time.process_time() < 1.5: pass\n"
        "print('a line'), print(json.dumps({'burnt': time.process_time()}))"
    )
    taken, printed = estimate._time_command([sys.executable, "-c", burn])
    # It is looked at every quarter of a second: what came after the last look is not seen.
    assert 1.0 < taken["cpu_s"] < printed["burnt"] + 0.5


def test_a_grid_costs_its_work_its_start_ups_and_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    study = importlib.import_module("benchmarks.study")

    def a_job(kind: str, **start: float) -> dict[str, Any]:
        worker = "bare" if "bare" in start else "ImplicitFunc"
        beside = {} if worker == "bare" else {"raylet": 1.0}
        return {"kind": kind, "start": start, "before scores": {worker: 10.0, **beside}}

    def a_scoring(process: str, start: float) -> dict[str, Any]:
        return {"kind": "scoring", "start": {process: start}, "scores": {process: 5.0}}

    bare = {
        "spent": {"bare": 60.0},
        "wall_s": 60.0,
        "jobs": [a_job("pass", bare=4.0), a_job("trial", bare=1.0), a_scoring("bare", 0.5)],
    }
    ray = {
        "spent": {"driver": 6.0, "raylet": 5.0, "ImplicitFunc": 36.0, "Scorer": 6.0},
        "wall_s": 70.0,
        "jobs": [
            a_job("pass", ImplicitFunc=7.0, raylet=0.5),
            a_job("trial", ImplicitFunc=8.0, raylet=0.5),
            a_scoring("Scorer", 0.75),
        ],
    }
    found = study.compute_figures([{"bare": bare, "shared": ray, "in step": ray}])

    work = {what: figure["median"] for what, figure in found["bare work, cpu_s"].items()}
    assert work == {"reference pass": 10.0, "policy steps": 10.0, "scores": 5.0}
    shared = found["shared"]
    assert shared["cpu_s"]["median"] == 53.0  # 6 + 5 + 36 + 6
    assert shared["start-up of a trial, cpu_s"]["median"] == 8.5  # 8 + 0.5
    assert shared["start-up of a pass, cpu_s"]["median"] == 7.5
    assert shared["start-up of a scoring, cpu_s"]["median"] == 0.75
    # (53 − 16 − 0.75) / 25
    assert shared["over bare work, start-up taken off"]["median"] == 1.45
    # the raylet's 5 less 1 of start-ups; the slot's 36 less 15 of start-ups and 20 of work; what
    # scores 6 less 0.75 and 5
    assert shared["the rest by process, cpu_s"] == {
        "driver": 6.0,
        "raylet": 4.0,
        "ImplicitFunc": 1.0,
        "Scorer": 0.25,
    }


def test_what_a_job_costs_is_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    study = importlib.import_module("benchmarks.study")
    config = TrialConfig.model_validate({"model": "shapes"})
    training = Job(id="t", name="t", config=config, folder=Path("t"))
    times = iter(
        [
            {"driver": 1.0, "ImplicitFunc": 2.0, "Scorer": 3.0},
            {"driver": 1.5, "ImplicitFunc": 4.0, "Scorer": 3.5},
            {"driver": 1.75, "ImplicitFunc": 9.0, "Scorer": 4.0},
        ]
    )

    class Executor:
        def run(self, jobs: Any, on_event: Any, retry: Any, more: Any) -> None:
            for event in (
                JobStarted(job=training),
                JobProgressed(job=training, progress=Progress(phase="train", done=1, total=2)),
                JobProgressed(job=training, progress=Progress(phase="train", done=2, total=2)),
                JobAnswered(job=training, answered_trial=Any, scoring_job=training.scoring_job()),
            ):
                on_event(event)

    heard: list[Any] = []
    watched = study.RecordingExecutor(Executor(), lambda: next(times))
    watched.run([training], heard.append, None, lambda: ())

    assert len(heard) == 4
    assert watched.jobs == [
        {
            "job": "t",
            "kind": "trial",
            "start": {"driver": 0.5, "ImplicitFunc": 2.0},
            "before scores": {"driver": 0.25, "ImplicitFunc": 5.0},
        }
    ]


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The acceptance of a GPU, on models of one layer."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.gpu_acceptance")
    small = {
        "hidden": 32, "intermediate": 64, "layers": 1, "image_tokens": 16, "vocabulary": 300,
        "tower": (32, 64, 1, 2),
    }  # fmt: skip
    monkeypatch.setattr(module, "CLOSE", small)
    monkeypatch.setitem(module.SIZES, "tiny", small)
    for name, value in {"WORDS": 2, "CHOSEN": 9, "REJECTED": 7}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_the_acceptance_of_a_gpu_is_the_same_code_on_a_cpu(acceptance: Any, tmp_path: Path) -> None:
    given = ["--out", str(tmp_path), "--size", "tiny", "--device", "cpu", "--steps", "1"]
    code = acceptance.main([*given, "--peak-tflops", "1"])
    rows = {
        row["part"]: row for row in json.loads((tmp_path / "acceptance.json").read_text())["parts"]
    }
    assert code == 0, {name: row.get("failed") for name, row in rows.items()}
    assert list(rows) == [
        "exact fp32", "exact bf16", "repeat", "resume", "fsdp", "lora", "full", "ways", "answers",
    ]  # fmt: skip
    assert rows["exact fp32"]["log p apart"] < 1e-5
    parts = rows["lora"]["estimated GiB"]
    assert sum(value for name, value in parts.items() if name != "all") == pytest.approx(
        parts["all"], abs=0.01
    )
    assert rows["lora"]["tokens/s"] > 0 and rows["answers"]["items/s"] > 0


def test_a_part_that_fails_is_a_row(acceptance: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> dict[str, Any]:
        raise ArithmeticError("weights differ")

    row = acceptance._run_part("repeat", fails)
    assert (row["ok"], row["failed"]) == (False, "ArithmeticError: weights differ")
    assert "weights differ" in capsys.readouterr().err


@pytest.mark.slow  # starts a server, whose process imports all anew
def test_a_server_answers_as_this_process_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    answers = importlib.import_module("benchmarks.answers_server")
    given = ["answers_server", "--items", "2", "--rounds", "1", "--concurrency", "4", "--json"]
    monkeypatch.setattr(sys, "argv", given)
    answers.main()
    report = json.loads(capsys.readouterr().out)
    one = report["one model"]
    ways = ["here", "here, one at a time", "bare", "server"]
    assert list(one) == [*ways, "compared"]
    assert [one[way]["same answers"] for way in ways] == [2, 2, 2, 2]
    assert one["bare"]["cpu of the server"] > one["bare"]["cpu here"]
    four, alone = report["arms"]["four arms"], report["arms"]["one arm, four times the items"]
    ratio = four["seconds"] / alone["seconds"]
    assert report["arms"]["compared"]["four arms over one"] == pytest.approx(ratio, abs=0.01)
