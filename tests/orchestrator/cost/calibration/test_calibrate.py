"""A calibration: measured once, kept by what it depends on, no trace beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import DataPaths
from chip_core.evaluation.task import BENCHMARKS
from orchestrator.cost.calibration import calibrate as calibration
from orchestrator.cost.calibration.calibrate import calibrate, load_calibration
from orchestrator.cost.calibration.measure import measure
from orchestrator.cost.calibration.measurements import STEPS, Measurement, list_measurements
from orchestrator.cost.workload import Workload
from orchestrator.plan.plan import Plan

from ..conftest import SHORT, STUDY, make_seconds

WorkOf = Callable[[Plan], Workload]


@pytest.fixture
def fake_measurements(monkeypatch: pytest.MonkeyPatch) -> list[Measurement]:
    """Measure nothing: the n-th measurement finds n seconds of everything it is for."""
    measurements: list[Measurement] = []

    def measure(one: Measurement, place: Path, *_: Any, **__: Any) -> dict[str, Any]:
        measurements.append(one)
        times = {name: [len(measurements), len(measurements) / 2] for name, _ in one.kinds}
        return {"seconds": times, "sizes": {"memory": 100 * len(measurements)}}

    monkeypatch.setattr(calibration, "_run_measurement", measure)
    return measurements


def test_each_kind_is_measured_once_and_stored(
    small_plan: Plan, make_workload: WorkOf, fake_measurements: list[Measurement], tmp_path: Path
) -> None:
    work, said = make_workload(small_plan), list[str]()
    assert load_calibration(work, tmp_path, 1) is None
    assert calibrate(work, tmp_path, DataPaths(), at_once=1, notify=said.append) == {}
    # Two objectives; the learning rate changes no time. The first one's model answers.
    assert said == ["calibrating: dpo, 1e-5", "calibrating: chip, 1e-5"]
    assert [len(one.config.benchmarks.report) for one in fake_measurements] == [1, 0]
    assert all(one.config.training.max_steps == STEPS for one in fake_measurements)
    assert all(one.config.data.limit == STEPS * 16 for one in fake_measurements)
    # No more than the study asks.
    assert fake_measurements[0].config.benchmarks.report[0].limit == 20

    found = load_calibration(work, tmp_path, 1)
    assert found is not None
    by_arm = {each.trial.arm: each for each in work.trials}
    for arm, wall in (("dpo, 1e-6", 1), ("chip, 1e-5", 2)):
        kind = by_arm[arm].training
        assert kind is not None
        assert found.rates["step", kind] == make_seconds(wall, wall / 2)
    # Both measured the start, which is one kind: the mean.
    assert found.rates["model", work.trials[0].start] == make_seconds(1.5, 0.75)

    calibrate(work, tmp_path, DataPaths(), at_once=1, notify=said.append)
    assert len(fake_measurements) == 2
    assert {path.parent.name for path in tmp_path.rglob("*.json")} == {"cost"}
    assert not (tmp_path / "ledger").exists()


def test_every_place_is_filled(
    small_plan: Plan, make_workload: WorkOf, fake_measurements: list[Measurement], tmp_path: Path
) -> None:
    work = make_workload(small_plan)
    calibrate(work, tmp_path, DataPaths(), at_once=4, notify=lambda _: None)
    assert [one.name for one in fake_measurements].count("dpo, 1e-5") == 2  # of four at a time
    assert load_calibration(work, tmp_path, 4) is not None
    assert load_calibration(work, tmp_path, 1) is None  # beside others a step takes longer


def test_passes_come_first_and_are_read(
    plan_of: Callable[..., Plan],
    make_workload: WorkOf,
    fake_measurements: list[Measurement],
    tmp_path: Path,
) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, "training.max_steps": 60})
    calibrate(make_workload(plan), tmp_path, DataPaths(), at_once=1, notify=lambda _: None)
    assert [one.builds_passes for one in fake_measurements] == [True, False, False]
    assert fake_measurements[0].passes == (("text", None, "fp32"), ("rejected_image", None, None))
    # DPO reads what holds hidden states for the other too.
    assert fake_measurements[1].passes == (("text", None, "fp32"),)
    assert fake_measurements[2].passes == fake_measurements[0].passes


def test_a_paid_judge_is_not_asked(
    plan_of: Callable[..., Plan], make_workload: WorkOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BENCHMARKS["shapes"], "needs", frozenset({"judge"}))
    judged = STUDY.replace("limit: 20}", "limit: 20, judge: a-judge}")
    plan = plan_of(judged, overrides=SHORT)
    assert all(not one.config.benchmarks.report for one in list_measurements(make_workload(plan)))


def test_a_trial_of_several_workers_is_not_measured(
    plan_of: Callable[..., Plan], make_workload: WorkOf
) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, "engine.workers_per_trial": 2})
    (base,) = list_measurements(make_workload(plan))
    assert base.untrained  # it alone is one process's work


def test_what_cannot_be_measured_is_told_and_not_kept(
    small_plan: Plan, make_workload: WorkOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calibration, "_run_measurement", lambda *_, **__: {"error": "it fails"})
    work = make_workload(small_plan)
    found = calibrate(work, tmp_path, DataPaths(), at_once=1, notify=lambda _: None)
    assert found == {"dpo, 1e-5": "it fails", "chip, 1e-5": "it fails"}
    assert load_calibration(work, tmp_path, 1) is None


def test_a_real_training_is_measured(
    plan_of: Callable[..., Plan], make_workload: WorkOf, tmp_path: Path
) -> None:
    """A pass is made and a training that reads it measured, here in one process."""
    tiny = {
        **SHORT,
        "training.max_steps": 60,
        "training.batch_size": 2,
        "data.limit": 12,
        "training.epochs": 9,
    }
    text = STUDY.replace("{name: shapes, limit: 20}", "{name: shapes, limit: 2, max_new_tokens: 2}")
    work = make_workload(plan_of(text, overrides=tiny))
    made, _, chip = list_measurements(work)
    spec = {"cache": str(tmp_path / "stores"), "places": {}}

    def run(one: Measurement) -> dict[str, Any]:
        settings = one.config.model_dump(mode="json")
        own = {"config": settings, "passes": one.passes, "make": one.builds_passes}
        return measure({**spec, **own, "untrained": one.untrained}, tmp_path / one.name[:4])

    sample = run(made)["seconds"]["sample"]
    assert sample[0] > 0
    found = run(chip)
    assert {"imports", "model", "row", "setup", "step"} == set(found["seconds"])
    assert found["seconds"]["step"][1] > 0
    assert found["sizes"]["saved"] > 1e6  # the embedded model takes some MB
    # Without its stores the same training computes its reference: it is not what was asked for.
    spec["cache"] = str(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / chip.name[:4])
    assert "its reference was live" in run(chip)["error"]
