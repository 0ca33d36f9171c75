"""Measure Ray's overhead: python -m orchestrator.cost.calibration.measure_ray FOLDER.

Jobs that do nothing are run like a study's. The time of the first one with the start of Ray is the
overhead per run; that of each further one is the overhead per trial before its own work begins.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from chip_core.config.trial import TrialConfig
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.utils.files import write_json
from orchestrator.executors.base import Job, JobEvent, JobFailed

_POLL_INTERVAL = 0.2  # seconds between two readings of the processes
_EXTRA_JOBS = 3  # jobs after the first


class ProcessTreeTimer:
    """CPU seconds of this process and its descendants, including those that have ended."""

    def __init__(self) -> None:
        """Start reading."""
        self._seen: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        """Return the CPU seconds so far."""
        with self._lock:
            current = psutil.Process()
            for process in [current, *current.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self._seen[process.pid, process.create_time()] = times.user + times.system
            return sum(self._seen.values())

    def stop(self) -> None:
        """Stop reading."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_INTERVAL):
            self.seconds()


def run_empty_trial(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    """Run a trial that ends at once."""
    report(Progress(phase="start", done=0, total=1))
    write_json(job.folder / RESULT, asdict(TrialResult(steps=0, evaluations={}, seconds={})))


def measure(folder: Path) -> dict[str, object]:
    """Return the overhead per run and per trial, in seconds [wall, cpu]."""
    from orchestrator.executors.ray.tuner import RayTuneExecutor

    config = TrialConfig.model_validate({"model": "shapes"})  # nothing of it is loaded
    jobs = [
        Job(id=f"n{number}", name=f"n{number}", config=config, folder=folder / f"n{number}")
        for number in range(1 + _EXTRA_JOBS)
    ]
    failed: list[str] = []

    def listen(event: JobEvent) -> None:
        if isinstance(event, JobFailed):
            failed.append(event.reason)

    runner = RayTuneExecutor(
        workdir=folder,
        max_concurrent=1,
        entry="orchestrator.cost.calibration.measure_ray:run_empty_trial",
    )
    timer, points = ProcessTreeTimer(), []
    points.append((time.perf_counter(), 0.0))
    with runner.open(jobs):
        for batch in (jobs[:1], jobs[1:]):
            runner.run(batch, listen)
            points.append((time.perf_counter(), timer.seconds()))
    points.append((time.perf_counter(), timer.seconds()))
    timer.stop()
    if failed:
        return {"error": failed[0]}
    (start, first, last, end) = points
    per_job = [(last[index] - first[index]) / _EXTRA_JOBS for index in (0, 1)]
    total = [end[index] - start[index] for index in (0, 1)]
    per_run = [
        max(total_time - (1 + _EXTRA_JOBS) * job_time, 0.0)
        for total_time, job_time in zip(total, per_job, strict=True)
    ]
    return {"seconds": {"session": per_run, "dispatch": per_job}, "sizes": {}}


def main(arguments: Sequence[str]) -> int:
    """Measure in a folder, and write `found.json` there."""
    folder = Path(arguments[0])
    try:
        result = measure(folder)
    except Exception as error:  # whatever Ray raises
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    write_json(folder / "found.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
