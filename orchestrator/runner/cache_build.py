"""Build a study's reference caches before its trials."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from chip_core.reference_cache.finish import finish_cache
from chip_core.reference_cache.folder import (
    BrokenStoreError,
    LocalCaches,
    build_lock,
    jobs_folder,
    shard_count,
    store_folder,
)
from chip_core.reference_cache.size import format_bytes
from chip_core.reference_cache.spec import AvailableCaches, BuildShard, build_config, group_specs
from chip_core.utils.errors import StorageError
from chip_core.utils.files import JsonlWriter
from orchestrator.executors.base import Executor, Job, JobEvent, JobFailed, JobFinished
from orchestrator.plan.plan import Trial
from orchestrator.state.cache_plan import USES_FILE, PlannedCache, cache_folder, open_caches


@dataclass(frozen=True, kw_only=True)
class DisplayedShard:
    """A part of a reference pass, for the display."""

    fingerprint: str
    arm: str
    name: str
    seed: int | None = None


class CacheBuild:
    """Verifies the existing reference caches of a study's trials and builds the missing ones.

    If a pass cannot be built, or is broken and not worth rebuilding, its state is set so that the
    trials compute it. Use this as a context manager: within it, no other driver builds the same
    passes. An executor runs the jobs of `make_jobs`; once `is_finished`, `finish` commits the
    caches.
    """

    def __init__(
        self, planned_caches: Sequence[PlannedCache], *, study: str, storage: Path, console: Console
    ) -> None:
        """Create a build without reading anything yet.

        Args:
            planned_caches: result of `plan_caches`; their states are updated.
            study: name of the study.
            storage: where the caches are.
            console: where messages on the passes go.
        """
        self._planned_caches, self._study, self._console = planned_caches, study, console
        self._caches = open_caches(storage)
        self._groups: list[list[PlannedCache]] = []
        self._jobs_by_group: dict[str, list[Job]] = {}  # jobs of each group, by its first pass
        self._start_time = time.perf_counter()
        self._results: dict[Path, JobFinished] = {}
        self._end_seconds: dict[Path, float] = {}
        self._lost_counts: dict[Path, int] = {}
        self._jobs_left = 0
        self._reasons: dict[str, str] = {}  # why passes failed, by key
        self._seconds: dict[str, float] = {}  # duration of passes, by key
        self._locks = ExitStack()

    def __enter__(self) -> CacheBuild:
        """Verify all passes, and lock those that are to be built."""
        cache = self._caches.cache
        _record_uses(self._planned_caches, self._study, cache)  # first, so that they are not pruned
        with ExitStack() as locks:
            # Always in the same order, so that two drivers do not deadlock.
            for planned in sorted(self._planned_caches, key=lambda planned: planned.spec.key):
                _update_state(planned, self._caches, self._console)
                if planned.state != "to make":
                    continue
                folder = store_folder(cache, planned.spec.key)
                locks.enter_context(build_lock(folder, _wait_notifier(planned, self._console)))
                # it may have been built meanwhile
                _update_state(planned, self._caches, self._console)
            self._locks = locks.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        """Release the locks."""
        self._locks.close()

    def make_jobs(self, executor: Executor) -> list[Job]:
        """Return the jobs of the build. They split the samples of each group of passes.

        Args:
            executor: within `open`.
        """
        by_key = {planned.spec.key: planned for planned in self._planned_caches}
        specs = [planned.spec for planned in self._planned_caches if planned.state == "to make"]
        self._groups = [[by_key[spec.key] for spec in group] for group in group_specs(specs)]
        self._jobs_by_group = {
            group[0].spec.key: _make_shard_jobs(group, self._caches, executor, len(self._groups))
            for group in self._groups
        }
        jobs = [job for group_jobs in self._jobs_by_group.values() for job in group_jobs]
        self._jobs_left, self._start_time = len(jobs), time.perf_counter()
        return jobs

    @property
    def reading_trials(self) -> set[str]:
        """The fingerprints of trials that read a pass to be built."""
        planned_caches = (planned for group in self._groups for planned in group)
        return {fingerprint for planned in planned_caches for fingerprint in planned.trials}

    @property
    def is_finished(self) -> bool:
        """Whether all jobs have ended."""
        return self._jobs_left == 0

    def on_event(self, event: JobEvent) -> None:
        """Record an event of a job."""
        if isinstance(event, JobFailed) and event.retry_job is None:
            assert event.job.shard is not None
            for spec in event.job.shard.passes:
                self._reasons.setdefault(spec.key, event.reason)
            self._jobs_left -= 1
        elif isinstance(event, JobFinished):
            self._results[event.job.folder] = event
            self._end_seconds[event.job.folder] = time.perf_counter() - self._start_time
            self._jobs_left -= 1

    def retry(self, failure: JobFailed) -> Job | None:
        """Return the next attempt at a part whose worker was lost. Its finished shards are kept."""
        job, retries = failure.job, self._lost_counts.get(failure.job.folder, 0)
        if failure.cause != "worker_lost" or retries >= job.config.engine.retries:
            return None
        self._lost_counts[job.folder] = retries + 1
        return replace(job, id=f"{job.id}-again")

    def finish(self) -> list[dict[str, Any]]:
        """Commit the caches, release the locks and return the outcome of each pass.

        Returns:
            a record per pass: pass, hash, samples, bytes, seconds, rounding (largest change of a
            token's log-probability by bf16), state, trials.
        """
        for group in self._groups:
            self._finish_group(group)
        self._locks.close()
        return [self._record(planned) for planned in self._planned_caches]

    def _finish_group(self, group: Sequence[PlannedCache]) -> None:
        group_jobs = self._jobs_by_group[group[0].spec.key]
        for planned in group:
            key = planned.spec.key
            if key not in self._reasons:
                rows = self._results[group_jobs[0].folder].result.data["samples"]
                seconds = max(self._end_seconds[job.folder] for job in group_jobs)
                self._finish_cache(planned, rows, seconds)
            if key in self._reasons:
                planned.state = "in the step"
                _print_line(
                    self._console,
                    f"the reference pass '{planned.spec.name}' failed: {self._reasons[key]}: the "
                    "trials compute it themselves",
                )
        if not any(planned.spec.key in self._reasons for planned in group):
            self._caches.remove_job_results(store_folder(self._caches.cache, group[0].spec.key))

    def _finish_cache(self, planned: PlannedCache, rows: int, seconds: float) -> None:
        caches = self._caches
        try:
            caches.fetch_notes(store_folder(caches.cache, planned.spec.key))
            manifest = finish_cache(
                planned.spec, cache=caches.cache, rows=rows, seconds=seconds, commit=caches.commit
            )
            planned.set_cached(manifest)
        except (BrokenStoreError, StorageError) as error:
            self._reasons[planned.spec.key] = str(error)
            return
        self._seconds[planned.spec.key] = seconds
        rounding = planned.rounding
        suffix = "" if rounding is None else f", bf16 moves a token's log p by {rounding:.1g}"
        _print_line(
            self._console,
            f"reference pass '{planned.spec.name}': {rows} samples, "
            f"{format_bytes(planned.bytes or 0)}, {seconds:.0f} s{suffix}",
        )

    def _record(self, planned: PlannedCache) -> dict[str, Any]:
        key = planned.spec.key
        state = "computed in the step" if planned.state == "in the step" else "found"
        if key in self._seconds:
            state = "made"
        if key in self._reasons:
            state = f"failed: {self._reasons[key]}"
        return {
            "pass": planned.spec.name,
            "hash": store_folder(self._caches.cache, key).name,
            "samples": planned.samples,
            "bytes": planned.bytes if planned.state == "cached" else None,
            "seconds": self._seconds.get(key),
            "rounding": planned.rounding,
            "state": state,
            "trials": len(planned.trials),
        }


def attach_caches(
    jobs: Sequence[tuple[Job, Trial, int]], planned_caches: Sequence[PlannedCache], storage: Path
) -> list[tuple[Job, Trial, int]]:
    """Return the jobs with the caches that each can read."""
    caches_by_trial: dict[str, list[PlannedCache]] = {}
    for planned in planned_caches:
        if planned.state == "cached":
            for fingerprint in planned.trials:
                caches_by_trial.setdefault(fingerprint, []).append(planned)
    cache = cache_folder(storage).absolute()

    def find_caches(trial: Trial) -> AvailableCaches | None:
        readable = caches_by_trial.get(trial.fingerprint)
        specs = tuple(planned.spec for planned in readable or ())
        return AvailableCaches(cache=cache, passes=specs) if specs else None

    return [
        (replace(job, caches=find_caches(trial)), trial, attempt) for job, trial, attempt in jobs
    ]


def _update_state(planned: PlannedCache, caches: LocalCaches, console: Console) -> None:
    """Update a pass's state from its cache. Every file is hashed once per machine."""
    folder = store_folder(caches.cache, planned.spec.key)
    try:
        planned.set_cached(caches.verify(folder, planned.spec.identity))
    except BrokenStoreError as error:
        if planned.state == "cached":
            is_rebuilt = planned.decide_build()
            consequence = "it is rebuilt" if is_rebuilt else "the trials compute it"
            _print_line(
                console,
                f"the reference pass '{planned.spec.name}' is broken: {error}: {consequence}",
            )


def _make_shard_jobs(
    group: Sequence[PlannedCache], caches: LocalCaches, executor: Executor, group_count: int
) -> list[Job]:
    """Return the jobs of a group, one per available worker."""
    folder = store_folder(caches.cache, group[0].spec.key)
    template = Job(
        id=f"pass-{folder.name[:12]}",
        name=f"reference pass {', '.join(repr(planned.spec.name) for planned in group)}",
        config=build_config([(planned.spec, planned.config) for planned in group]),
        folder=jobs_folder(folder),
    )
    caches.remove_job_results(folder)  # of an earlier attempt
    count = max(1, executor.count_slots(template) // group_count)
    samples = group[0].samples
    if samples is not None:
        count = max(1, min(count, shard_count(samples)))
    specs = tuple(planned.spec for planned in group)
    return [
        replace(
            template,
            id=f"{template.id}-{index}",
            name=template.name if count == 1 else f"{template.name}, part {index + 1} of {count}",
            folder=template.folder / f"part-{index + 1}-of-{count}",
            shard=BuildShard(passes=specs, cache=caches.cache.absolute(), number=index, of=count),
        )
        for index in range(count)
    ]


def displayed_shard(job: Job) -> DisplayedShard:
    """Return the display entry of a part of a pass."""
    assert job.shard is not None
    arm = job.name.replace("reference pass ", "reference: ", 1)
    return DisplayedShard(fingerprint=job.shard.passes[0].key, arm=arm, name=job.name)


def _wait_notifier(planned: PlannedCache, console: Console) -> Any:
    return lambda who: _print_line(
        console, f"the reference pass '{planned.spec.name}' is being built by {who}: waiting for it"
    )


def _record_uses(planned_caches: Sequence[PlannedCache], study: str, cache: Path) -> None:
    used_caches = [planned for planned in planned_caches if planned.state != "in the step"]
    if not used_caches:
        return
    writer = JsonlWriter(cache / USES_FILE)
    for planned in used_caches:
        key = store_folder(cache, planned.spec.key).name
        writer.append({"time": time.time(), "study": study, "pass": key, "trials": planned.trials})
    writer.close()


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
