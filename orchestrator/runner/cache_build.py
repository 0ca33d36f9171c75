"""Build a study's reference caches before its trials."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from chip_core.reference_cache.folder import (
    BrokenStoreError,
    build_lock,
    shard_count,
    store_folder,
)
from chip_core.reference_cache.size import gigabytes
from chip_core.reference_cache.spec import AvailableCaches, BuildShard, build_config, group_specs
from chip_core.utils.errors import StorageError
from chip_core.utils.files import JsonlWriter
from orchestrator.executors.base import Event, Executor, Failed, Finished, Job
from orchestrator.plan.plan import Trial
from orchestrator.runner.display import display_for
from orchestrator.state.cache_plan import USES, PlannedCache, cache_folder
from orchestrator.storage.reference_cache import ReferenceCacheStore, jobs_folder


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A share of a pass, for the display."""

    fingerprint: str
    arm: str
    name: str
    seed: int | None = None


def build_caches(
    passes: Sequence[PlannedCache],
    *,
    study: str,
    storage: Path,
    executor: Executor,
    console: Console,
) -> list[dict[str, Any]]:
    """Make what is to be made, and check what is there; say what became of each pass.

    A pass that cannot be made, or that turns out broken and is not worth making anew, is computed
    by its trials: its state says so.

    Args:
        passes: of `plan_caches`; their states are brought up to date.
        study: its name.
        storage: where stores lie.
        executor: within `opened`.
        console: where progress goes.

    Returns:
        a record of each pass: what, hash, samples, bytes, seconds, by how much bf16 moves a token's
        log-probability at most, state, trials.
    """
    caches = ReferenceCacheStore(storage)
    cache = caches.cache
    _note_uses(passes, study, cache)  # first of all: what is used is not pruned
    reasons: dict[str, str] = {}
    seconds: dict[str, float] = {}
    with ExitStack() as locks:
        # In one order: two drivers never wait for each other.
        for planned in sorted(passes, key=lambda planned: planned.one.key):
            _look(planned, caches, console)
            if planned.state != "to make":
                continue
            folder = store_folder(cache, planned.one.key)
            locks.enter_context(build_lock(folder, _waits(planned, console)))
            _look(planned, caches, console)  # it may be what was waited for
        wanted = [planned for planned in passes if planned.state == "to make"]
        if wanted:
            _make(wanted, caches, executor, console, reasons, seconds)
    records = []
    for planned in passes:
        key = planned.one.key
        state = "computed in the step" if planned.state == "in the step" else "found"
        if key in seconds:
            state = "made"
        if key in reasons:
            state = f"failed: {reasons[key]}"
        records.append(
            {
                "pass": planned.one.name,
                "hash": store_folder(cache, key).name,
                "samples": planned.samples,
                "bytes": planned.bytes if planned.state == "cached" else None,
                "seconds": seconds.get(key),
                "rounding": planned.rounding,
                "state": state,
                "trials": len(planned.trials),
            }
        )
    return records


def attach_caches(
    jobs: Sequence[tuple[Job, Trial, int]], passes: Sequence[PlannedCache], storage: Path
) -> list[tuple[Job, Trial, int]]:
    """Return the jobs with the stores that each may read."""
    of_trial: dict[str, list[PlannedCache]] = {}
    for planned in passes:
        if planned.state == "cached":
            for fingerprint in planned.trials:
                of_trial.setdefault(fingerprint, []).append(planned)
    cache = cache_folder(storage).absolute()

    def offered(trial: Trial) -> AvailableCaches | None:
        found = of_trial.get(trial.fingerprint)
        ones = tuple(planned.one for planned in found or ())
        return AvailableCaches(cache=cache, passes=ones) if ones else None

    return [(replace(job, offered=offered(trial)), trial, n) for job, trial, n in jobs]


def _look(planned: PlannedCache, caches: ReferenceCacheStore, console: Console) -> None:
    """Say of a pass whether its store can be used; every file is hashed once a machine."""
    folder = store_folder(caches.cache, planned.one.key)
    try:
        planned.take(caches.verify(folder, planned.one.identity))
    except BrokenStoreError as error:
        if planned.state == "cached":
            worth = planned.decide()
            what = "it is made anew" if worth else "the trials compute it"
            _say(console, f"the reference pass '{planned.one.name}' is broken: {error}: {what}")


def _make(
    wanted: Sequence[PlannedCache],
    caches: ReferenceCacheStore,
    executor: Executor,
    console: Console,
    reasons: dict[str, str],
    seconds: dict[str, float],
) -> None:
    """Make passes: groups at the same time, the samples of each shared out to workers."""
    by_key = {planned.one.key: planned for planned in wanted}
    groups = [
        [by_key[one.key] for one in group]
        for group in group_specs([planned.one for planned in wanted])
    ]
    parts = {group[0].one.key: _parts(group, caches, executor, len(groups)) for group in groups}
    jobs = [job for of_group in parts.values() for job in of_group]
    entries = [(job, _shown(job), 1) for job in jobs]
    results: dict[Path, Finished] = {}
    ended: dict[Path, float] = {}
    lost: dict[Path, int] = {}
    began = time.perf_counter()

    def listener(event: Event) -> None:
        if isinstance(event, Failed) and event.retry is None:
            assert event.job.shard is not None
            for one in event.job.shard.passes:
                reasons.setdefault(one.key, event.reason)
        elif isinstance(event, Finished):
            results[event.job.folder] = event
            ended[event.job.folder] = time.perf_counter() - began
        display.take(event)

    def retry(failed: Failed) -> Job | None:
        """Go on with a part whose worker was lost: the shards that it made are there."""
        job, tried = failed.job, lost.get(failed.job.folder, 0)
        if failed.cause != "worker_lost" or tried >= job.config.engine.retries:
            return None
        lost[job.folder] = tried + 1
        return replace(job, id=f"{job.id}-again")

    with display_for(console, entries) as display:
        executor.run(jobs, listener, retry)
    for group in groups:
        of_group = parts[group[0].one.key]
        for planned in group:
            if planned.one.key not in reasons:
                rows = results[of_group[0].folder].result.data["samples"]
                taken = max(ended[job.folder] for job in of_group)
                _finish(planned, caches, rows, taken, console, reasons, seconds)
            if planned.one.key in reasons:
                planned.state = "in the step"
                reason = reasons[planned.one.key]
                _say(
                    console,
                    f"the reference pass '{planned.one.name}' failed: {reason}: the trials "
                    "compute it themselves",
                )
        if not any(planned.one.key in reasons for planned in group):
            caches.forget_jobs(store_folder(caches.cache, group[0].one.key))


def _finish(
    planned: PlannedCache,
    caches: ReferenceCacheStore,
    rows: int,
    taken: float,
    console: Console,
    reasons: dict[str, str],
    seconds: dict[str, float],
) -> None:
    # Imported here: it takes torch, which a study without a pass to make goes without.
    from chip_core.reference_cache.build import finish_cache

    try:
        caches.fetch_notes(store_folder(caches.cache, planned.one.key))
        made = finish_cache(
            planned.one, cache=caches.cache, rows=rows, seconds=taken, commit=caches.commit
        )
        planned.take(made)
    except (BrokenStoreError, StorageError) as error:
        reasons[planned.one.key] = str(error)
        return
    seconds[planned.one.key] = taken
    moved = planned.rounding
    rounded = "" if moved is None else f", bf16 moves a token's log p by {moved:.1g}"
    _say(
        console,
        f"reference pass '{planned.one.name}': {rows} samples, {gigabytes(planned.bytes or 0)}, "
        f"{taken:.0f} s{rounded}",
    )


def _parts(
    group: Sequence[PlannedCache], caches: ReferenceCacheStore, executor: Executor, groups: int
) -> list[Job]:
    """Return the jobs of a group: as many as there are workers for it."""
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


def _shown(job: Job) -> _Shown:
    assert job.shard is not None
    arm = job.name.replace("reference pass ", "reference: ", 1)
    return _Shown(fingerprint=job.shard.passes[0].key, arm=arm, name=job.name)


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
