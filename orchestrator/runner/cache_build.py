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
    build_lock,
    shard_count,
    store_folder,
)
from chip_core.reference_cache.size import format_bytes
from chip_core.reference_cache.spec import AvailableCaches, BuildShard, build_config, group_specs
from chip_core.utils.errors import StorageError
from chip_core.utils.files import JsonlWriter
from orchestrator.executors.base import Event, Executor, Failed, Finished, Job
from orchestrator.plan.plan import Trial
from orchestrator.state.cache_plan import USES, PlannedCache, cache_folder
from orchestrator.storage.reference_cache import ReferenceCacheStore, jobs_folder


@dataclass(frozen=True, kw_only=True)
class DisplayedPart:
    """A part of a reference pass, for the display."""

    fingerprint: str
    arm: str
    name: str
    seed: int | None = None


class CacheBuild:
    """Verifies the existing reference caches of a study's trials and builds the missing ones.

    If a pass cannot be built, or is broken and not worth rebuilding, its state is set so that the
    trials compute it. Use this as a context manager: within it, no other driver builds the same
    passes. An executor runs its `jobs`; when all have `ended`, `finish` commits the caches.
    """

    def __init__(
        self, passes: Sequence[PlannedCache], *, study: str, storage: Path, console: Console
    ) -> None:
        """Create a build without reading anything yet.

        Args:
            passes: result of `plan_caches`; their states are updated.
            study: name of the study.
            storage: where the caches are.
            console: where messages on the passes go.
        """
        self._passes, self._study, self._console = passes, study, console
        self._caches = ReferenceCacheStore(storage)
        self._groups: list[list[PlannedCache]] = []
        self._parts: dict[str, list[Job]] = {}  # jobs of each group, by its first pass
        self._began = time.perf_counter()
        self._results: dict[Path, Finished] = {}
        self._ended: dict[Path, float] = {}
        self._lost: dict[Path, int] = {}
        self._left = 0
        self._reasons: dict[str, str] = {}  # why passes failed, by key
        self._seconds: dict[str, float] = {}  # duration of passes, by key
        self._held = ExitStack()

    def __enter__(self) -> CacheBuild:
        """Verify all passes, and lock those that are to be built."""
        cache = self._caches.cache
        _note_uses(self._passes, self._study, cache)  # first, so that they are not pruned
        with ExitStack() as locks:
            # Always in the same order, so that two drivers do not deadlock.
            for planned in sorted(self._passes, key=lambda planned: planned.one.key):
                _look(planned, self._caches, self._console)
                if planned.state != "to make":
                    continue
                folder = store_folder(cache, planned.one.key)
                locks.enter_context(build_lock(folder, _waits(planned, self._console)))
                _look(planned, self._caches, self._console)  # it may have been built meanwhile
            self._held = locks.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        """Release the locks."""
        self._held.close()

    def jobs(self, executor: Executor) -> list[Job]:
        """Return the jobs of the build. They split the samples of each group of passes.

        Args:
            executor: within `opened`.
        """
        by_key = {planned.one.key: planned for planned in self._passes}
        wanted = [planned.one for planned in self._passes if planned.state == "to make"]
        self._groups = [[by_key[one.key] for one in group] for group in group_specs(wanted)]
        self._parts = {
            group[0].one.key: _parts(group, self._caches, executor, len(self._groups))
            for group in self._groups
        }
        jobs = [job for of_group in self._parts.values() for job in of_group]
        self._left, self._began = len(jobs), time.perf_counter()
        return jobs

    @property
    def reads(self) -> set[str]:
        """The fingerprints of trials that read a pass to be built."""
        made = (planned for group in self._groups for planned in group)
        return {fingerprint for planned in made for fingerprint in planned.trials}

    @property
    def ended(self) -> bool:
        """Whether all jobs have ended."""
        return self._left == 0

    def take(self, event: Event) -> None:
        """Record an event of a job."""
        if isinstance(event, Failed) and event.retry is None:
            assert event.job.shard is not None
            for one in event.job.shard.passes:
                self._reasons.setdefault(one.key, event.reason)
            self._left -= 1
        elif isinstance(event, Finished):
            self._results[event.job.folder] = event
            self._ended[event.job.folder] = time.perf_counter() - self._began
            self._left -= 1

    def retry(self, failed: Failed) -> Job | None:
        """Return the next attempt at a part whose worker was lost. Its finished shards are kept."""
        job, tried = failed.job, self._lost.get(failed.job.folder, 0)
        if failed.cause != "worker_lost" or tried >= job.config.engine.retries:
            return None
        self._lost[job.folder] = tried + 1
        return replace(job, id=f"{job.id}-again")

    def finish(self) -> list[dict[str, Any]]:
        """Commit the caches, release the locks and return what became of each pass.

        Returns:
            a record per pass: pass, hash, samples, bytes, seconds, rounding (largest change of a
            token's log-probability by bf16), state, trials.
        """
        for group in self._groups:
            self._finish_group(group)
        self._held.close()
        return [self._record(planned) for planned in self._passes]

    def _finish_group(self, group: Sequence[PlannedCache]) -> None:
        of_group = self._parts[group[0].one.key]
        for planned in group:
            key = planned.one.key
            if key not in self._reasons:
                rows = self._results[of_group[0].folder].result.data["samples"]
                taken = max(self._ended[job.folder] for job in of_group)
                self._finish_pass(planned, rows, taken)
            if key in self._reasons:
                planned.state = "in the step"
                _say(
                    self._console,
                    f"the reference pass '{planned.one.name}' failed: {self._reasons[key]}: the "
                    "trials compute it themselves",
                )
        if not any(planned.one.key in self._reasons for planned in group):
            self._caches.forget_jobs(store_folder(self._caches.cache, group[0].one.key))

    def _finish_pass(self, planned: PlannedCache, rows: int, taken: float) -> None:
        caches = self._caches
        try:
            caches.fetch_notes(store_folder(caches.cache, planned.one.key))
            made = finish_cache(
                planned.one, cache=caches.cache, rows=rows, seconds=taken, commit=caches.commit
            )
            planned.take(made)
        except (BrokenStoreError, StorageError) as error:
            self._reasons[planned.one.key] = str(error)
            return
        self._seconds[planned.one.key] = taken
        moved = planned.rounding
        rounded = "" if moved is None else f", bf16 moves a token's log p by {moved:.1g}"
        _say(
            self._console,
            f"reference pass '{planned.one.name}': {rows} samples, "
            f"{format_bytes(planned.bytes or 0)}, {taken:.0f} s{rounded}",
        )

    def _record(self, planned: PlannedCache) -> dict[str, Any]:
        key = planned.one.key
        state = "computed in the step" if planned.state == "in the step" else "found"
        if key in self._seconds:
            state = "made"
        if key in self._reasons:
            state = f"failed: {self._reasons[key]}"
        return {
            "pass": planned.one.name,
            "hash": store_folder(self._caches.cache, key).name,
            "samples": planned.samples,
            "bytes": planned.bytes if planned.state == "cached" else None,
            "seconds": self._seconds.get(key),
            "rounding": planned.rounding,
            "state": state,
            "trials": len(planned.trials),
        }


def attach_caches(
    jobs: Sequence[tuple[Job, Trial, int]], passes: Sequence[PlannedCache], storage: Path
) -> list[tuple[Job, Trial, int]]:
    """Return the jobs with the caches that each can read."""
    of_trial: dict[str, list[PlannedCache]] = {}
    for planned in passes:
        if planned.state == "cached":
            for fingerprint in planned.trials:
                of_trial.setdefault(fingerprint, []).append(planned)
    cache = cache_folder(storage).absolute()

    def caches_of(trial: Trial) -> AvailableCaches | None:
        found = of_trial.get(trial.fingerprint)
        ones = tuple(planned.one for planned in found or ())
        return AvailableCaches(cache=cache, passes=ones) if ones else None

    return [(replace(job, caches=caches_of(trial)), trial, n) for job, trial, n in jobs]


def _look(planned: PlannedCache, caches: ReferenceCacheStore, console: Console) -> None:
    """Update a pass's state from its cache. Every file is hashed once per machine."""
    folder = store_folder(caches.cache, planned.one.key)
    try:
        planned.take(caches.verify(folder, planned.one.identity))
    except BrokenStoreError as error:
        if planned.state == "cached":
            worth = planned.decide()
            what = "it is made anew" if worth else "the trials compute it"
            _say(console, f"the reference pass '{planned.one.name}' is broken: {error}: {what}")


def _parts(
    group: Sequence[PlannedCache], caches: ReferenceCacheStore, executor: Executor, groups: int
) -> list[Job]:
    """Return the jobs of a group, one per available worker."""
    folder = store_folder(caches.cache, group[0].one.key)
    whole = Job(
        id=f"pass-{folder.name[:12]}",
        name=f"reference pass {', '.join(repr(planned.one.name) for planned in group)}",
        config=build_config([(planned.one, planned.config) for planned in group]),
        folder=jobs_folder(folder),
    )
    caches.forget_jobs(folder)  # of an earlier attempt
    count = max(1, executor.slots(whole) // groups)
    samples = group[0].samples
    if samples is not None:
        count = max(1, min(count, shard_count(samples)))
    passes = tuple(planned.one for planned in group)
    return [
        replace(
            whole,
            id=f"{whole.id}-{number}",
            name=whole.name if count == 1 else f"{whole.name}, part {number + 1} of {count}",
            folder=whole.folder / f"part-{number + 1}-of-{count}",
            shard=BuildShard(passes=passes, cache=caches.cache.absolute(), number=number, of=count),
        )
        for number in range(count)
    ]


def displayed_part(job: Job) -> DisplayedPart:
    """Return the display entry of a part of a pass."""
    assert job.shard is not None
    arm = job.name.replace("reference pass ", "reference: ", 1)
    return DisplayedPart(fingerprint=job.shard.passes[0].key, arm=arm, name=job.name)


def _waits(planned: PlannedCache, console: Console) -> Any:
    return lambda who: _say(
        console, f"the reference pass '{planned.one.name}' is being made by {who}: waiting for it"
    )


def _note_uses(passes: Sequence[PlannedCache], study: str, cache: Path) -> None:
    used = [planned for planned in passes if planned.state != "in the step"]
    if not used:
        return
    uses = JsonlWriter(cache / USES)
    for planned in used:
        key = store_folder(cache, planned.one.key).name
        uses.append({"time": time.time(), "study": study, "pass": key, "trials": planned.trials})
    uses.close()


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
