"""The executor on Ray, by a Tune that a test plays: what Ray itself can hardly be brought to."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError

from chip_core.config.trial import EngineConfig, ModelConfig, TrialConfig
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.utils.errors import reset_warnings
from chip_core.utils.files import write_json
from orchestrator.executors.base import Job, JobEvent, JobFailed, JobFinished, JobStarted
from orchestrator.executors.ray import session, tuner
from orchestrator.executors.ray.slot import PAYLOAD_KEY, progress_metrics
from orchestrator.executors.ray.tuner import RayTuneExecutor, WaitingNotice, WaitingTrialsStopper

#: As Ray 2.60 words it, shortened: two processes of one node, of which one was killed.
KILLED = OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory.\n"
    "Selected to kill: (Actor(4a20): task name=ImplicitFunc.__init__, pid=102, used=3.92GB)\n"
    "Top 10 memory users: PID MEM(GB) COMMAND\n102 3.92 ray::ImplicitFunc\n101 0.24 ray::Idle"
)


def make_job(folder: Path, name: str, workers: int = 1) -> Job:
    engine = EngineConfig(workers_per_trial=workers)
    config = TrialConfig(model=ModelConfig(path="shapes"), engine=engine)
    return Job(id=name, name=name, config=config, folder=folder / name)


class FirstRunKilledTuner:
    """A Tuner: its first run ends since Ray killed a slot, its second runs all that is left."""

    runs = 0

    def __init__(self, trainable: Any, *, tune_config: Any, run_config: Any) -> None:
        self._searcher = tune_config.search_alg
        self._most = tune_config.max_concurrent_trials
        self._callback = run_config.callbacks[0]

    def fit(self) -> None:
        type(self).runs += 1
        pid = 100
        while (self.runs == 2 or pid < 100 + self._most) and isinstance(
            config := self._searcher.suggest(""), dict
        ):
            pid += 1
            trial = SimpleNamespace(config=config)
            self._callback.on_trial_start(0, [], trial)
            report = progress_metrics(Progress(phase="train", done=1, total=4))
            self._callback.on_trial_result(
                0, [], trial, {**report, "pid": pid, "node_ip": "192.0.2.1"}
            )
            if self.runs == 2:
                result = TrialResult(steps=4, evaluations={}, seconds={})
                write_json(config[PAYLOAD_KEY].job.folder / RESULT, asdict(result))
                self._callback.on_trial_complete(0, [], trial)
        if self.runs == 1:
            raise RuntimeError("Caught unexpected exception") from KILLED


def test_a_slot_that_ray_kills_for_memory_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def connected(address: str | None, jobs: list[Job]) -> Iterator[None]:
        yield

    monkeypatch.setattr(tuner, "connect_ray", connected)
    monkeypatch.setattr(tuner, "count_concurrent_jobs", lambda *given: 2)
    monkeypatch.setattr(tuner, "alive_node_resources", lambda: [])
    monkeypatch.setattr("ray.tune.Tuner", FirstRunKilledTuner)
    FirstRunKilledTuner.runs = 0
    events: list[JobEvent] = []

    def retry(failed: JobFailed) -> Job:
        name = f"{failed.job.id}-2"
        return replace(failed.job, id=name, folder=tmp_path / name)

    jobs = [make_job(tmp_path, name) for name in ("bystander", "large", "later")]
    RayTuneExecutor(workdir=tmp_path / "work").run(jobs, events.append, retry)

    # The third had no slot in the first run; both of the first come again, before it.
    started = [event.job.id for event in events if isinstance(event, JobStarted)]
    assert sorted(started[:2]) == ["bystander", "large"]
    assert sorted(started[2:4]) == ["bystander-2", "large-2"] and started[4:] == ["later"]
    failed = {event.job.id: event for event in events if isinstance(event, JobFailed)}
    assert {name: (event.cause, event.from_outside) for name, event in failed.items()} == {
        "bystander": ("worker_lost", True),
        "large": ("memory", True),
    }
    assert failed["large"].reason == "the worker process died (its machine ran out of memory)"
    assert "Ray killed another trial for memory" in failed["bystander"].reason
    ended = {event.job.id for event in events if isinstance(event, JobFinished)}
    assert ended == {"bystander-2", "large-2", "later"}


def test_what_waits_for_a_place_is_told_after_a_minute_and_then_more_and_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reset_warnings()
    now = 0.0
    wanted = {"CPU": 2.0, "GPU": 1.0}
    there, free = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 5.0}  # Ray leaves out what is 0
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    monkeypatch.setattr("ray.available_resources", lambda: free)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": there}])
    group = {"state": "PENDING"}
    monkeypatch.setattr(session, "placement_group_table", lambda: {"1": group})
    payload = SimpleNamespace(job=make_job(tmp_path, "dpo, seed 0"), resources=wanted)
    first, second, third = (
        SimpleNamespace(trial_id=name, status=status, config={PAYLOAD_KEY: payload})
        for name, status in (("1", "RUNNING"), ("2", "PENDING"), ("3", "PENDING"))
    )
    look = WaitingNotice(SimpleNamespace(running={}), clock=lambda: now)

    def told_until(seconds: float) -> list[str]:
        nonlocal now
        caplog.clear()
        while now < seconds:
            now += 5
            look.on_step_begin(0, [first, second, third])
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING):
        look.on_step_begin(0, [first, second, third])
        assert told_until(55) == []
        assert told_until(60) == [
            "dpo, seed 0 and 1 more: no resources yet after 60 s: it asks for 2 CPU and 1 GPU on "
            "one node, free in total: 5 of 8 CPU, 0 of 1 GPU: wait until there are, or stop with "
            "Ctrl-C"
        ]
        assert len(told_until(500)) == 3  # after 120, 240 and 480 s
        second.status = third.status = "RUNNING"
        assert told_until(600) == []
        second.status, group["state"] = "PENDING", "CREATED"  # its process starts
        assert told_until(700) == []
        second.status, group["state"] = "RUNNING", "PENDING"
        assert told_until(705) == []
        second.status, wanted["GPU"] = "PENDING", 2.0
        look.on_step_begin(0, [first, second, third])
        [line] = told_until(now + 65)
        assert (
            line.startswith("dpo, seed 0: no resources yet after 60 s")
            and "no node is that" in line
        )


def test_tune_writes_its_state_without_ours() -> None:
    """Tune pickles callbacks and stoppers for a restore; a monitor holds locks."""
    monitor = SimpleNamespace(lock=threading.RLock())
    for part in (WaitingNotice(monitor), WaitingTrialsStopper(monitor)):
        assert vars(cloudpickle.loads(cloudpickle.dumps(part))) == {}


def test_workers_that_wait_for_their_places_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The slot of a trial of several workers runs at once; its workers may not."""
    reset_warnings()
    now, there = 0.0, {"CPU": 2.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    monkeypatch.setattr("ray.available_resources", lambda: there)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": there}])
    monkeypatch.setattr(session, "placement_group_table", lambda: {"1": {"state": "PENDING"}})
    alone, four = make_job(tmp_path, "alone"), make_job(tmp_path, "four", workers=4)
    trials = [
        SimpleNamespace(
            trial_id=each.name,
            status="RUNNING",
            config={PAYLOAD_KEY: SimpleNamespace(job=each, resources={"CPU": 1.0})},
        )
        for each in (alone, four)
    ]
    running = {each.id: SimpleNamespace(placement_group=None) for each in (alone, four)}
    look = WaitingNotice(SimpleNamespace(running=running), clock=lambda: now)
    with caplog.at_level(logging.WARNING):
        for now in range(0, 65, 5):  # noqa: B007  the clock's
            look.on_step_begin(0, trials)
        assert [record.getMessage() for record in caplog.records] == [
            "four: no resources yet after 60 s: its 4 workers ask for 1 CPU each, free in total: "
            "2 of 2 CPU: wait until there are, or stop with Ctrl-C"
        ]
        caplog.clear()
        running[four.id].placement_group = "their placement group"
        for now in range(65, 600, 5):  # noqa: B007
            look.on_step_begin(0, trials)
        assert not caplog.records
