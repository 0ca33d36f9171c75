"""Real trials one after another in one slot on Ray, equal to trials by themselves to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from orchestrator.executors.base import Job, JobAnswered, JobEvent, JobFinished
from orchestrator.executors.ray.tuner import RayTuneExecutor
from orchestrator.jobs.attempt import execute_job

from ....chip_core.trainings import hash_outputs

SHORT: dict[str, Any] = {
    "model": "shapes",
    "training": {"max_steps": 2, "batch_size": 2},
    "benchmarks": {"report": [{"name": "shapes", "limit": 4}]},
    "engine": {"micro_batch": 2, "threads": 1},
}
#: Adapters after whole weights, frozen after trained, another precision, and the first again.
SEQUENCE: list[dict[str, Any]] = [
    {"objective": "chip", "vision_encoder": "trained"},
    {"language_model": "lora"},
    {"vision_encoder": "frozen", "objective": "dpo"},
    {"model": {"path": "shapes", "dtype": "bf16"}, "language_model": "lora"},
    {"objective": "chip", "vision_encoder": "trained"},
]


# test_base_models.py holds it in a process without Ray, and e2e/test_program.py two trials on Ray.
@pytest.mark.slow
@pytest.mark.ray
def test_trials_of_one_slot_equal_trials_by_themselves(tmp_path: Path) -> None:
    def job(name: str, settings: dict[str, Any]) -> Job:
        config = TrialConfig.model_validate({**SHORT, **settings})
        return Job(id=name, name=name, config=config, folder=tmp_path / name)

    jobs = [job(f"slot-{number}", settings) for number, settings in enumerate(SEQUENCE)]
    events: list[JobEvent] = []
    RayTuneExecutor(workdir=tmp_path / "work", max_concurrent=1).run(jobs, events.append)
    answered = [event for event in events if isinstance(event, JobAnswered)]
    assert [event.job.id for event in answered] == [each.id for each in jobs], events[-1]
    # The first alone imported what all of them need: the others had its process.
    assert all(event.answered_trial.cpu["imports"] < 0.5 for event in answered[1:])
    ended = [event.job.name for event in events if isinstance(event, JobFinished)]
    assert sorted(ended) == [each.name for each in jobs]
    for number, settings in enumerate(SEQUENCE[:4]):
        execute_job(job(f"alone-{number}", settings), lambda progress: None)
        alone = hash_outputs(tmp_path / f"alone-{number}")
        assert hash_outputs(tmp_path / f"slot-{number}") == alone, settings
    assert hash_outputs(tmp_path / "slot-4") == hash_outputs(tmp_path / "slot-0")
