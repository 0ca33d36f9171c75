"""A job on a machine that does not see the work directory.

What the job needs is copied from the storage to this machine; it runs in a folder of its own here,
whose content goes to the storage while it runs. Stores of reference passes stay on the machine for
the next job; all else goes at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chip_core.evaluation.readiness import sides
from chip_core.results import CHECKPOINTS, MODEL, TRAINED
from chip_core.training.checkpoint import broken
from chip_core.training.store.folder import (
    BrokenStoreError,
    check,
    partial_folder,
    remove,
    store_folder,
)
from chip_core.workers import current
from orchestrator.executors.base import CUT, STOP, Job
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.place import fetch_folder, node_folder
from orchestrator.storage.remote import PATIENT, Remote
from orchestrator.storage.shelf import CACHE

_JUDGE = "cache/judge"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Where the files of one attempt at a job are, for all machines: it travels to them."""

    remote: Remote
    workdir: Path  # the driver's, absolute: paths of a job lie below it
    token: str  # of this attempt: no other ever has it

    @contextlib.contextmanager
    def hand(self, folder: Path) -> Iterator[Hand]:
        """Have a job's files on this machine; at the end the storage has what it left.

        Of several workers on one machine the first to come copies, and cleans up.

        Args:
            folder: the job's, as its driver names it.

        Raises:
            StorageError: the storage cannot be written.
        """
        hand = Hand(self, folder)
        with hand.held() as first_here, hand.mirror if first_here else contextlib.nullcontext():
            yield hand


class Hand:
    """A job's files on this machine."""

    def __init__(self, elsewhere: Elsewhere, folder: Path) -> None:
        """Nothing is there yet: `Elsewhere.hand` makes it."""
        self._remote = Remote(elsewhere.remote.uri, pauses=PATIENT)
        self._workdir = elsewhere.workdir
        self._kept = node_folder(elsewhere.remote)
        self._here = self._kept / "jobs" / elsewhere.token
        self.folder = self.moved(folder)
        self.mirror = Mirror(
            self._remote,
            [self.folder, self._here / _JUDGE, self._here / CACHE],
            self._here,
            asked=[self.folder / STOP, self.folder / CUT],
        )

    def moved(self, path: Path) -> Path:
        """Return where a path of the driver's is on this machine."""
        return self._here / self._below(path)

    def brought(self, job: Job) -> Job:
        """Return a job as this machine runs it, with all that it needs copied here.

        Raises:
            StorageError: it cannot be copied.
        """
        offered, part = job.offered, job.part
        with _locked(self._here / ".bring"), self.mirror.waiting():
            for earlier in job.earlier:
                self._fetch(self._below(earlier))
            if job.trained_model is not None:
                self._fetch(self._below(job.trained_model.parent))
                self._fetch(self._below(job.trained_model), weights=True)
            if job.resume_from is not None:
                self._fetch_resumed(job, job.resume_from)
            if any(benchmark.judge is not None for _, benchmark in sides(job.config.benchmarks)):
                self._fetch(_JUDGE)
            if offered is not None:
                for one in offered.passes:
                    self._fetch_store(one.key, one.identity)
                offered = replace(offered, cache=self._kept / CACHE)
            if part is not None:
                for one in part.passes:
                    partial = partial_folder(store_folder(Path(CACHE), one.key))
                    self._fetch(partial.as_posix(), weights=True)
                part = replace(part, cache=self._here / CACHE)
        return replace(
            job,
            folder=self.folder,
            trained_model=None if job.trained_model is None else self.moved(job.trained_model),
            resume_from=None if job.resume_from is None else self.moved(job.resume_from),
            earlier=tuple(self.moved(folder) for folder in job.earlier),
            places=replace(job.places, judge_cache=self._here / _JUDGE),
            offered=offered,
            part=part,
            share=self.share,
        )

    def share(self) -> None:
        """Have what the first worker left in the job's folder on every worker's machine.

        All workers come here together.

        Raises:
            StorageError: it cannot be copied.
        """
        workers = current()
        if workers.first:
            self.mirror.copy()
        workers.wait()
        with _locked(self._here / ".bring"):
            self._fetch(self._below(self.folder, self._here), weights=True)
        workers.wait()

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Keep this machine's copy from being taken for a dead job's; at the end it goes.

        Yields:
            whether this process is the first of the job's on this machine, which copies.
        """
        jobs = self._here.parent
        jobs.mkdir(parents=True, exist_ok=True)
        with _locked(self._here, shared=True), _tried(_beside(self._here, ".first")) as first_here:
            if first_here:
                _remove_dead(jobs)
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                yield first_here
            finally:
                if first_here:
                    shutil.rmtree(self._here, ignore_errors=True)

    def _below(self, path: Path, root: Path | None = None) -> str:
        return path.absolute().relative_to(root or self._workdir).as_posix()

    def _fetch(self, key: str, *, weights: bool = False) -> None:
        fetch_folder(self._remote, self._here, key, weights=weights)

    def _fetch_resumed(self, job: Job, folder: Path) -> None:
        """Bring what a training goes on from: a trained model, else the newest whole checkpoint."""
        self._fetch(self._below(folder))
        if (self.moved(folder) / TRAINED).exists():
            self._fetch(f"{self._below(folder)}/{MODEL}", weights=True)
            return
        for attempt in dict.fromkeys([folder, *job.earlier]):
            for checkpoint in sorted((self.moved(attempt) / CHECKPOINTS).glob("step-*"))[::-1]:
                self._fetch(self._below(checkpoint, self._here), weights=True)
                if broken(checkpoint, job.config) is None:
                    return

    def _fetch_store(self, key: str, identity: Mapping[str, Any]) -> None:
        """Copy a store to this machine, once; the job itself says so where it is not whole."""
        folder = store_folder(self._kept / CACHE, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            with contextlib.suppress(BrokenStoreError):
                check(folder, identity)
                return
            remove(folder)
            coming = folder.with_name(f".{folder.name}.coming")
            shutil.rmtree(coming, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # it was removed there meanwhile
                for each in self._remote.sizes(f"{CACHE}/{folder.name}"):
                    self._remote.get(each, coming / each.rpartition("/")[2])
                coming.replace(folder)


@contextlib.contextmanager
def _locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock a file beside a folder; the lock goes with the process, however it ends."""
    with _beside(folder, ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _tried(folder: Path) -> Iterator[bool]:
    """Lock a file beside a folder where nobody has; yield whether it is locked."""
    with _beside(folder, ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}{suffix}")


def _remove_dead(jobs: Path) -> None:
    """Remove what jobs left on this machine whose processes were killed."""
    for lock in jobs.glob("*.lock"):
        with _tried(lock.with_suffix("")) as dead:
            if dead:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
