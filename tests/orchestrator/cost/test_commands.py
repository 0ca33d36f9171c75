"""plan and run as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from .conftest import STUDY

GIVEN = ["--rate", "start=10", "--rate", "step=1", "--rate", "answer=0.5"]
SHORT = ["--set", "training.max_steps=10", "--set", "engine.feature_cache=off"]


@pytest.fixture
def run_on_study(
    write_study: Callable[[str], Path], run_captured: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """Call a command on the study; return (exit code, output, errors)."""

    def run(command: str, *arguments: str, text: str = STUDY) -> tuple[int, str, str]:
        return run_captured(command, write_study(text), *SHORT, *arguments)

    return run


def test_given_rates_as_json(run_on_study: Callable[..., tuple[int, str, str]]) -> None:
    price = ["--price-per-cpu-hour", "3.6"]
    code, out, _ = run_on_study("plan", *GIVEN, *price, "--max-concurrent", "13", "--json")
    assert code == 0
    cost: dict[str, Any] = json.loads(out)["cost"]
    # 12 trials of 10 + 10 · 1 + 20 · 0.5 = 30 s, the untrained model 20 s.
    assert cost["cpu_hours"] == pytest.approx(380 / 3600)
    assert cost["price"] == pytest.approx(0.38)
    assert cost["wall_seconds"] == 30  # all at a time
    assert cost["sources"] == ["given rates"]
    assert cost["arms"][1]["seconds"] == {
        "start": 30, "train": 30, "answer": 30, "score": 0, "passes": 0
    }  # fmt: skip
    assert cost["seeds_buy"]["items"] == 20
    fit = cost["memory"][0]
    assert (fit["measured"], fit["fits"]) == (False, True)
    assert fit["bytes"] > 4 * 1.1e6  # the embedded model's parameters at least
    assert cost["disk"]["models"] == pytest.approx(12 * 4.8e6, rel=0.1)


def test_a_plan_shows_its_cost_on_the_terminal(
    run_on_study: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = run_on_study("plan", *GIVEN, "--executor", "inline")
    flat = " ".join(out.split())
    assert code == 0
    assert "from start to end 6 min, one after another, 6 min of CPU time" in flat
    assert "with 3 seeds and 20 items a difference of about" in flat
    assert "estimated, of" in flat
    assert "activations" in flat


def test_a_training_on_the_cpu_reads_no_gpu_though_one_is_reserved(
    run_on_study: Callable[..., tuple[int, str, str]],
) -> None:
    on_cpu = ["--set", "engine.gpus_per_worker=1", "--set", "engine.device=cpu"]
    code, out, _ = run_on_study("plan", *GIVEN, *on_cpu, "--executor", "inline", "--json")
    assert code == 0
    fit = json.loads(out)["cost"]["memory"][0]
    assert fit["device_bytes"] == psutil.virtual_memory().total


def test_without_rates_it_is_not_known(
    run_on_study: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = run_on_study("plan")
    assert code == 0
    assert "the study's cost is unknown" in " ".join(out.split())
    cost = json.loads(run_on_study("plan", "--json")[1])["cost"]
    assert cost["cpu_hours"] is None
    assert not cost["known"]
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml"}  # looking writes nothing


def test_too_little_memory_is_said(
    run_on_study: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What else would not fit either is tried in published/test_rates.py.
    monkeypatch.setattr("orchestrator.cost.memory.find_fitting_changes", lambda *_: ())
    _, out, _ = run_on_study("plan", *GIVEN, "--device-memory", "0.001")
    assert "does not fit" in out


def test_a_budget_in_the_plan(run_on_study: Callable[..., tuple[int, str, str]]) -> None:
    budget = STUDY + f"budget: {{cpu_hours: {300 / 3600}}}\n"  # two seeds take 8 · 30 + 20
    cost = json.loads(run_on_study("plan", *GIVEN, "--json", text=budget)[1])["cost"]
    assert cost["budget"]["left_out"]["seeds"] == [2]
    assert cost["cpu_hours"] == pytest.approx(260 / 3600)
    # The command line's is taken in its place.
    wide = json.loads(
        run_on_study("plan", *GIVEN, "--budget", "cpu_hours=9", "--json", text=budget)[1]
    )
    assert wide["cost"]["budget"]["left_out"]["trials"] == []


def test_a_studys_budget_that_cannot_be_held(
    run_on_study: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    budget = STUDY + "budget: {hours: 1}\n"
    code, out, _ = run_on_study("plan", text=budget)
    assert code == 0
    assert "budget (hours 1): the study's cost is unknown" in " ".join(out.split())
    found = json.loads(run_on_study("plan", "--json", text=budget)[1])["cost"]
    assert (found["budget"], "is unknown" in found["budget_problem"]) == (None, True)
    assert run_on_study("run", text=budget)[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml"}


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rate", "step"], "'step' is not name=number: write --rate step=1.5"),
        (["--rate", "stepp=1"], "--rate: stepp: unknown key: did you mean 'step'"),
        (["--budget", "days=1"], "--budget: days: unknown key"),
        (["--budget", "hours=1"], "budget (hours 1): the study's cost is unknown"),
    ],
)
def test_a_wrong_option_writes_nothing(
    run_on_study: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    command: str,
    arguments: list[str],
    expected: str,
) -> None:
    code, _, error = run_on_study(command, *arguments)
    assert code == 2
    assert expected in error
    assert len(error.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml"}
