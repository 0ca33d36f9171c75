"""A slot by itself, without Ray: what it reports of a job, and when it is not used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray.tune.schedulers import TrialScheduler

from chip_core.config.trial import EngineConfig, ModelConfig, TrialConfig
from chip_core.data.encodings import ENCODINGS
from chip_core.models.base_models import BASE_MODELS
from chip_core.results import Progress
from chip_core.trial_context import REPORT_EVERY, throttle
from chip_core.utils.errors import MemoryFullError, NonFiniteLossError, StorageError
from orchestrator.executors.base import Job
from orchestrator.executors.ray import slot
from orchestrator.executors.ray.job_process import HANG_FILE, JobOutcome, JobPayload
from orchestrator.executors.ray.slot import (
    OUTCOME_KEY,
    PAYLOAD_KEY,
    PERCENT_KEY,
    SlotRetired,
    run_slot,
)
from orchestrator.executors.ray.tuner import make_scheduler
from orchestrator.jobs.attempt import TRACEBACK_FILE
from orchestrator.study.early_stopping import EarlyStopping

METRIC = "reward/accuracy"


def ends_well(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    report(Progress(phase="start", done=0, total=1))
    report(Progress(phase="train", done=1, total=4, figures={METRIC: 0.5}))


def loss_is_nan(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    raise NonFiniteLossError("the loss is nan at step 3")


def no_room(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    raise MemoryFullError("no room on the GPU")


def storage_away(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    raise StorageError("the storage is away")


def disk_full(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    raise OSError(28, "No space left on device")


def exits(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    raise SystemExit(3)


@pytest.fixture
def tune_reports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What is reported to Tune."""
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(slot.tune, "report", reports.append)
    yield reports
    BASE_MODELS.disable()
    ENCODINGS.disable()


def make_payload(folder: Path, entry: str, **engine: Any) -> JobPayload:
    config = TrialConfig(
        model=ModelConfig(path="shapes"), engine=EngineConfig.model_validate(engine)
    )
    return JobPayload(
        job=Job(id="j", name="j", config=config, folder=folder / "j", can_stop_early=True),
        entry=f"{__name__}:{entry}",
        resources={"CPU": 1.0},
        placement="PACK",
        begin_within=600.0,
        storage=str(folder / "train"),
        staging=None,
    )


def test_a_job_that_ends_well_leaves_its_slot_to_the_next(
    tmp_path: Path, tune_reports: list[dict[str, Any]]
) -> None:
    for _ in range(2):
        run_slot({PAYLOAD_KEY: make_payload(tmp_path, "ends_well")})
    assert [report.get(OUTCOME_KEY) for report in tune_reports] == [None, None, JobOutcome()] * 2
    assert tune_reports[1][PERCENT_KEY] == 25 and tune_reports[1][METRIC] == 0.5  # step 1 of 4
    assert PERCENT_KEY not in tune_reports[0] and PERCENT_KEY not in tune_reports[2]
    assert not (tmp_path / "j" / HANG_FILE).exists()


@pytest.mark.parametrize(
    ("entry", "cause", "reason"),
    [
        ("loss_is_nan", "trial_error", "the loss is nan at step 3"),
        ("no_room", "memory", "no room on the GPU"),
        ("storage_away", "worker_lost", "the storage is away"),
        ("disk_full", "disk", "a disk is full"),
        ("exits", "trial_error", "SystemExit: 3"),
    ],
)
def test_a_job_that_fails_is_told_and_ends_its_slot(
    tmp_path: Path, tune_reports: list[dict[str, Any]], entry: str, cause: str, reason: str
) -> None:
    with pytest.raises(SlotRetired, match=reason):
        run_slot({PAYLOAD_KEY: make_payload(tmp_path, entry)})
    [report] = tune_reports
    assert report[OUTCOME_KEY].cause == cause
    assert report[OUTCOME_KEY].reason.startswith(reason)
    assert "Traceback" in (tmp_path / "j" / TRACEBACK_FILE).read_text()
    assert not (tmp_path / "j" / HANG_FILE).exists()


def test_a_slot_that_holds_too_much_memory_ends_after_its_job_is_told(
    tmp_path: Path, tune_reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = psutil.Process().memory_info().rss
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1.25 * held))
    with pytest.raises(SlotRetired, match=r"it holds (7\d|8\d|9\d) % of the machine's memory"):
        # 1 / 1.25 = 80 %, and what the process grew by.
        run_slot({PAYLOAD_KEY: make_payload(tmp_path, "ends_well")})
    assert tune_reports[-1][OUTCOME_KEY] == JobOutcome()


def test_tune_ends_a_training_at_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(metrics: dict[str, Any]) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(slot.tune, "report", stops)
    with pytest.raises(SystemExit) as end:
        run_slot({PAYLOAD_KEY: make_payload(tmp_path, "ends_well")})
    assert end.value.code == 0  # Tune's own way out: nothing is told of the job, and no traceback
    assert not (tmp_path / "j" / TRACEBACK_FILE).exists()
    BASE_MODELS.disable()
    ENCODINGS.disable()


def test_a_process_for_each_trial_keeps_no_base_model(
    tmp_path: Path, tune_reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(BASE_MODELS, "enable", lambda: asked.append(True))
    run_slot({PAYLOAD_KEY: make_payload(tmp_path, "ends_well", fresh_process=True)})
    assert asked == []
    run_slot({PAYLOAD_KEY: make_payload(tmp_path, "ends_well")})
    assert asked == [True]


def test_progress_is_told_once_a_phase_and_then_at_intervals() -> None:
    now = 0.0
    told: list[int] = []
    report = throttle(lambda progress: told.append(progress.done), clock=lambda: now)
    for step in range(1, 5):
        report(Progress(phase="train", done=step, total=9))
        now += 0.4 * REPORT_EVERY
    assert told == [1, 4]  # steps 2 and 3 are 0.4 and 0.8 of the interval after step 1
    report(Progress(phase="score shapes", done=0, total=9))
    assert told == [1, 4, 0]


@dataclass(eq=False, kw_only=True)
class FakeTrial:
    """What a scheduler asks of a Tune trial."""

    trial_id: str
    config: dict[str, Any]
    status: str = "RUNNING"


class SchedulerStub:
    """Tune's trials as a scheduler sees them, and what it says to their reports."""

    def __init__(self, tmp_path: Path, rule: EarlyStopping) -> None:
        self._folder, self._scheduler = tmp_path, make_scheduler(rule)

    def begin(self, name: str, *, can_stop_early: bool = True) -> FakeTrial:
        job = replace(make_payload(self._folder, "ends_well").job, can_stop_early=can_stop_early)
        config = {PAYLOAD_KEY: replace(make_payload(self._folder, "ends_well"), job=job)}
        trial = FakeTrial(trial_id=name, config=config)
        self._scheduler.on_trial_add(None, trial)
        return trial

    def report(self, trial: FakeTrial, percent: float, value: float) -> str:
        result = {PERCENT_KEY: percent, METRIC: value}
        decision: str = self._scheduler.on_trial_result(None, trial, result)
        return decision

    def end(self, trial: FakeTrial) -> None:
        last = {OUTCOME_KEY: JobOutcome()}
        assert self._scheduler.on_trial_result(None, trial, last) == TrialScheduler.CONTINUE
        self._scheduler.on_trial_complete(None, trial, last)


@pytest.mark.parametrize("method", ["asha", "median"])
def test_a_rule_cuts_what_falls_behind_spares_what_may_not_be_cut_and_survives_ends(
    tmp_path: Path, method: str
) -> None:
    more = {"min_trials": 1} if method == "median" else {"reduction_factor": 2}
    rule = EarlyStopping.model_validate({"method": method, "metric": METRIC, "grace": 0.25, **more})
    trials = SchedulerStub(tmp_path, rule)
    good = trials.begin("good")
    for percent in (20, 25, 50, 75, 100):
        assert trials.report(good, percent, 1.0) == TrialScheduler.CONTINUE
    trials.end(good)  # its last report is of the end, without the metric

    baseline = trials.begin("baseline", can_stop_early=False)
    for percent in (20, 25, 50, 75, 100):  # behind at each, and goes on
        assert trials.report(baseline, percent, 0.0) == TrialScheduler.CONTINUE
    trials.end(baseline)

    bad = trials.begin("bad")
    assert trials.report(bad, 20, 0.25) == TrialScheduler.CONTINUE  # in its grace
    # Median: the others' means up to 25 % are 1 and 0, the median 0.5; ASHA: the better half.
    assert trials.report(bad, 25, 0.25) == TrialScheduler.STOP
    late = trials.begin("late")
    assert trials.report(late, 100, 0.25) == TrialScheduler.CONTINUE  # nothing is left to save
