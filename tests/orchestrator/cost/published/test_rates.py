"""Cost and memory before anything ran: from operations, bytes and published figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.training.footprint.estimate import estimate_operations
from chip_core.training.footprint.published import load_model_config
from orchestrator.cli import main
from orchestrator.commands.common.remote_run import _format_options
from orchestrator.cost.memory import MemoryEstimator, find_fitting_changes, workers_per_machine
from orchestrator.cost.published.devices import DEVICES, RESERVED_GIB, UTILIZATION
from orchestrator.cost.published.rates import published_rates
from orchestrator.cost.published.rows import estimate_row_shapes
from orchestrator.cost.workload import Workload
from orchestrator.plan.plan import Plan

from ..conftest import ADAPTERS, SERVED, SHORT, STUDY

H100 = DEVICES["h100-80gb"]
ON_GPU = ["--set", "engine.gpus_per_worker=1", "--set", "training.max_steps=10"]


@pytest.fixture
def gpu_plan(plan_of: Callable[..., Plan]) -> Plan:
    return plan_of(STUDY, overrides={**SHORT, "engine.gpus_per_worker": 1})


def test_a_step_is_its_operations_over_the_share_of_the_peak(
    gpu_plan: Plan, make_workload: Callable[[Plan], Workload]
) -> None:
    work = make_workload(gpu_plan)
    found = published_rates(work, H100)
    assert found is not None
    trial = next(each for each in work.trials if each.trial.arm.startswith("dpo"))
    assert trial.training is not None
    engine = trial.config.engine.model_copy(update={"micro_batch": 1})
    one = trial.config.model_copy(update={"engine": engine})
    sizes = load_model_config(one.model)
    made = estimate_operations(sizes, one, estimate_row_shapes(sizes, one).typical)
    # The reference is computed in the step; the model is in fp32 and trained in whole.
    needed = 16 * (made.step + made.forward)
    share = UTILIZATION["full"]
    for source, used in ((found.fast, share.high), (found.slow, share.low)):
        rate = source.rates["step", trial.training].wall
        assert rate == pytest.approx(needed / (H100.fp32 * 1e12 * used))


def test_every_figure_has_its_source() -> None:
    assert all(device.source for device in DEVICES.values())
    assert all(0 < share.low < share.high < 1 and share.source for share in UTILIZATION.values())
    assert H100.usable_bytes == (80 - RESERVED_GIB) * 2**30


@pytest.fixture
def run_on_study(
    write_study: Callable[[str], Path], run_captured: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """Call a command on the study; return (exit code, output, errors)."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        return run_captured(command, write_study(STUDY), *ON_GPU, *arguments)

    return run


def test_a_plan_on_eight_gpus(run_on_study: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_on_study("plan", "--device", "h100-80gb", "--gpus", "8", "--json")
    cost = json.loads(out)["cost"]
    assert (code, cost["sources"], cost["at_once"]) == (0, ["published rates"], 8)
    assert cost["device"] == "h100-80gb"
    low, high = cost["fastest"]["total"], cost["total"]
    assert 0 < low["gpu_seconds"] < high["gpu_seconds"]
    share = UTILIZATION["full"]
    ratio = high["seconds"]["train"] / low["seconds"]["train"]
    assert ratio == pytest.approx(share.high / share.low)
    fit = cost["memory"][0]
    assert fit["bytes"] == sum(fit["parts"].values())
    assert (fit["device_bytes"], fit["fits"], fit["would_fit"]) == (H100.usable_bytes, True, [])
    flat = " ".join(run_on_study("plan", "--device", "h100-80gb")[1].split())
    assert "GPU hours on h100-80gb, from published rates" in flat
    assert "NVIDIA H100 datasheet" in flat


def test_a_studys_server_takes_some_of_the_gpus(
    write_study: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*given: str) -> str:
        device = ["--device", "h100-80gb", "--gpus", *given]
        adapters = [part for name in ADAPTERS for part in ("--set", f"{name}={ADAPTERS[name]}")]
        with pytest.raises(SystemExit):
            main(["plan", str(write_study(SERVED)), *ON_GPU, *adapters, *device])
        return capsys.readouterr().out

    cost = json.loads(plan("5", "--json"))["cost"]
    assert cost["at_once"] == 5 - 2
    for found in (cost, cost["fastest"]):
        assert found["server"]["gpu_seconds"] == pytest.approx(2 * found["wall_seconds"])
        jobs = sum(arm["gpu_seconds"] for arm in [*found["arms"], *cost["passes"]])
        whole = jobs + found["server"]["gpu_seconds"]
        assert found["total"]["gpu_seconds"] == pytest.approx(whole)
    assert cost["gpu_hours"] == pytest.approx(cost["total"]["gpu_seconds"] / 3600)
    lines = plan("5").splitlines()
    (row,) = [line for line in lines if line.startswith("the study's server")]
    assert [*row.split()[3:6], row.split()[6]] == ["—", "—", "—", "none"]
    # Nothing is left for the trials.
    cost = json.loads(plan("2", "--json"))["cost"]
    assert (cost["at_once"], cost["gpu_hours"], cost["cpu_hours"] is None) == (None, None, False)


def test_what_is_given_takes_the_place_of_what_is_published(
    run_on_study: Callable[..., tuple[int, str, str]],
) -> None:
    out = run_on_study("plan", "--device", "h100-80gb", "--rate", "step=2", "--json")[1]
    cost = json.loads(out)["cost"]
    assert cost["total"]["seconds"]["train"] == 12 * 10 * 2
    assert cost["fastest"]["total"]["seconds"]["train"] == 12 * 10 * 2
    assert cost["sources"] == ["given rates", "published rates"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--gpus", "8"], "--gpus is the number of --device GPUs: give --device, too"),
        (
            ["--device", "a100-40gb", "--gpus", "8", "--max-concurrent", "2"],
            "--gpus and --max-concurrent both set how many trials run at a time",
        ),
        (["--device", "abacus"], "'abacus' is not one of 'h100-80gb'"),
    ],
)
def test_a_wrong_option_is_one_line(
    run_on_study: Callable[..., tuple[int, str, str]], given: list[str], said: str
) -> None:
    code, _, error = run_on_study("plan", *given)
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_changes_that_fit_are_the_least_ones(gpu_plan: Plan) -> None:
    config = gpu_plan.trials[1].config
    estimator = MemoryEstimator(count=True)
    whole = estimator.estimate(config, reference=False)
    assert whole is not None
    size = whole.footprint.total
    # A byte too little: less is kept of the layers, or of the batch; figures stay.
    (first,) = find_fitting_changes(config, size - 1, estimator)
    assert first.bytes < size
    assert not first.changes_figures
    assert dict(first.settings) == {"engine.gradient_checkpointing": True}
    # What a single GPU does not hold, adapters or more workers do.
    small = first.bytes // 8
    found = list(find_fitting_changes(config, small, estimator))
    assert all(change.bytes <= small for change in found)
    assert not list(find_fitting_changes(config, 1000, estimator))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"parallel": "hsdp", "workers_per_trial": 16}, 8),  # two machines of a published kind
        ({"parallel": "hsdp", "workers_per_trial": 12}, 6),
        ({"parallel": "fsdp", "workers_per_trial": 16}, 16),
        ({"parallel": "hsdp", "workers_per_trial": 4}, 4),
        ({"parallel": "hsdp", "workers_per_trial": 1}, 1),
    ],
)
def test_hybrid_sharding_spreads_over_a_machine(
    gpu_plan: Plan, settings: dict[str, Any], parts: int
) -> None:
    config = gpu_plan.trials[1].config
    fsdp = {"parallel": "fsdp", "workers_per_trial": parts, "micro_batch": 1}
    # As many passes as the other training has.
    batch = config.training.model_copy(update={"batch_size": 64})
    found, alike = (
        MemoryEstimator(count=True).estimate(
            config.model_copy(
                update={"training": batch, "engine": config.engine.model_copy(update=engine)}
            ),
            reference=True,
        )
        for engine in ({**settings, "micro_batch": 1}, fsdp)
    )
    assert found is not None and alike is not None
    assert found.footprint == alike.footprint
    said = f"; assuming {parts} workers per machine"
    hybrid_on_several = settings["parallel"] == "hsdp" and parts < settings["workers_per_trial"]
    assert found.basis == alike.basis + said * hybrid_on_several


def test_a_machine_of_several_gpus_is_taken_for_the_others(
    gpu_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gpu_plan.trials[1].config.engine.model_copy(update={"workers_per_trial": 8})
    for here, machine in ((0, 8), (1, 8), (2, 2), (3, 2), (4, 4)):
        monkeypatch.setattr("orchestrator.cost.memory.gpu_count", lambda here=here: here)
        assert workers_per_machine(engine) == machine


def test_auto_spreads_over_a_machine_before_it_spreads_over_all(gpu_plan: Plan) -> None:
    config = gpu_plan.trials[1].config
    least = {"workers_per_trial": 16, "gradient_checkpointing": True, "micro_batch": 1}
    many = config.engine.model_copy(update=least)
    estimator = MemoryEstimator(count=True)

    def of(parallel: str, device: int | None = None) -> int:
        engine = many.model_copy(update={"parallel": parallel})
        found = estimator.estimate(
            config.model_copy(update={"engine": engine}), reference=True, device=device
        )
        assert found is not None
        return found.footprint.total

    sizes = [of("ddp"), of("hsdp"), of("fsdp")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert [of("auto", size) for size in sizes] == sizes
    # What hybrid sharding does not hold, the same workers do that share all of it.
    hybrid = config.model_copy(update={"engine": many.model_copy(update={"parallel": "hsdp"})})
    settings = [dict(found.settings) for found in find_fitting_changes(hybrid, sizes[2], estimator)]
    assert {"engine.parallel": "fsdp"} in settings


@pytest.mark.parametrize(
    ("settings", "of_model", "of_checkpoint"),
    [
        # Bytes of each weight in the model's folder; of each trained one in a checkpoint.
        ({}, 4, 4 + 8),  # the model and the moments
        ({"model.dtype": "bf16"}, 2, 4 + 8),  # masters, moments
        # Moments in 8 bits have a scale in fp32 for each 256.
        ({"model.dtype": "bf16", "optimizer.states": "int8"}, 2, 4 + 2 * (1 + 4 / 256)),
    ],
)
def test_what_is_written_is_as_wide_as_it_is_held(
    plan_of: Callable[..., Plan], settings: dict[str, object], of_model: int, of_checkpoint: float
) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, **settings})
    config = next(trial.config for trial in plan.trials if not trial.untrained)
    found = MemoryEstimator(count=True).estimate(config, reference=True)
    assert found is not None
    trained, frozen = found.footprint.trained, found.footprint.frozen
    assert found.saved == of_model * (trained + frozen)
    beside = 0 if settings else 4 * frozen  # masters are of what is trained alone
    made = found.checkpoint(found.saved)
    assert made == pytest.approx(of_checkpoint * trained + beside, abs=1)


def test_a_run_that_cannot_fit_ends_before_anything_is_made(
    run_on_study: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.cost.memory.find_fitting_changes", lambda *_: ())
    code, _, error = run_on_study("run", "--device-memory", "0.005", "--executor", "inline")
    assert code == 2
    assert "a step takes about" in error
    assert "of a GPU, but a trial may take 0.0 GiB: choose a GPU" in error
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml"}


def test_a_cluster_is_told_of_the_device() -> None:
    options = list(_format_options(None, (), (), (), {"device": "h100-80gb", "gpus": 8}))
    assert options == ["--device", "h100-80gb", "--gpus", "8"]
