"""Stage a job's files on a machine without the work directory.

What the job needs is copied from the storage to this machine; it runs in a folder of its own here,
whose content goes to the storage while it runs. Stores of reference passes and judges' replies stay
on the machine for the next job; all else goes at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from chip_core.evaluation.readiness import sides
from chip_core.pairs.rounds import ROUNDS
from chip_core.reference_cache.folder import (
    BrokenStoreError,
    partial_folder,
    remove,
    store_folder,
    verify,
)
from chip_core.results import CHECKPOINTS, MODEL, TRAINED, Progress
from chip_core.selection.rule import KEPT, step_name
from chip_core.trained import read_trained
from chip_core.training.checkpoint import checkpoint_problem
from chip_core.utils.workers import current_workers
from orchestrator.jobs.job import COPYING, STOP, Job
from orchestrator.storage.download import OnFile, fetch_folder, node_folder
from orchestrator.storage.judge_replies import JudgeReplies
from orchestrator.storage.reference_cache import CACHE
from orchestrator.storage.remote import PATIENT, Remote
from orchestrator.storage.uploader import Uploader

Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class StagingSpec:
    """Where the files of one attempt at a job are, for all machines: it travels to them."""

    remote: Remote
    workdir: Path  # the driver's, absolute: paths of a job lie below it
    token: str  # of this attempt: no other ever has it

    @classmethod
    def for_attempt(cls, job: Job, remote: Remote, workdir: Path) -> StagingSpec:
        """Return a new one."""
        return cls(remote=remote, workdir=workdir, token=f"{job.id}-{uuid.uuid4().hex[:12]}")

    @contextlib.contextmanager
    def workspace(self, folder: Path) -> Iterator[StagedWorkspace]:
        """Have a job's files on this machine; at the end the storage has what it left.

        Of several workers on one machine the first to come copies, and is the last to go.

        Args:
            folder: the job's, as its driver names it.

        Raises:
            StorageError: the storage cannot be written.
        """
        workspace = StagedWorkspace(self, folder)
        workspace.here.parent.mkdir(parents=True, exist_ok=True)
        with _beside(workspace.here, ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # else it is taken for a dead job's
            with _tried(_beside(workspace.here, ".first")) as first:
                if first:
                    _remove_dead(workspace.here.parent)
                workspace.folder.mkdir(parents=True, exist_ok=True)
                if not first:
                    yield workspace
                    return
                try:
                    with workspace.uploader:
                        yield workspace
                        fcntl.flock(lock, fcntl.LOCK_EX)  # the others have ended
                    workspace.drop_what_is_past()
                finally:
                    shutil.rmtree(workspace.here, ignore_errors=True)


class StagedWorkspace:
    """A job's files on this machine."""

    def __init__(self, spec: StagingSpec, folder: Path) -> None:
        """Nothing is there yet: `StagingSpec.workspace` makes it."""
        self._remote = Remote(spec.remote.uri, pauses=PATIENT)
        self._workdir = spec.workdir
        self._kept = node_folder(self._remote)
        self._replies = JudgeReplies(self._remote, self._kept)
        self._past: set[str] = set()  # keys of what an attempt before left, till a model is here
        self._earlier = set[str]()  # keys of the attempts before
        self.here = self._kept / "jobs" / spec.token
        self.folder = self.moved(folder)
        self.uploader = Uploader(
            self._remote,
            [self.folder, self.here / CACHE],
            self.here,
            asked=[self.folder / STOP],
            also=self._replies.push,
        )

    def moved(self, path: Path) -> Path:
        """Return where a path of the driver's is on this machine."""
        return self.here / self._below(path)

    def brought(self, job: Job, report: Report) -> Job:
        """Return a job as this machine runs it, with all that it needs copied here.

        Args:
            job: as its driver has it.
            report: told of each file, of those of its folder.

        Raises:
            StorageError: it cannot be copied.
        """
        caches, part = job.caches, job.shard

        def on_file(done: int, total: int) -> None:
            report(Progress(phase=COPYING, done=done, total=total))

        with _locked(_beside(self.here, ".bring")), self.uploader.waiting():
            for earlier in job.earlier:
                self._fetch(self._below(earlier), on_file)
                self._earlier.add(self._below(earlier))
                self._past.add(f"{self._below(earlier)}/{CHECKPOINTS}")
                self._past.add(f"{self._below(earlier)}/{KEPT}")
            if job.trained_model is not None:
                self._fetch(self._below(job.trained_model.parent), on_file)
                self._fetch(self._below(job.trained_model), on_file, weights=True)
            if job.resume_from is not None:
                self._fetch_resumed(job, job.resume_from, on_file)
            if job.answers is not None:
                self._fetch(self._below(job.answers), on_file)
            if _judged(job):
                self._replies.pull()
            if caches is not None:
                for one in caches.passes:
                    self._fetch_store(one.key, one.identity, on_file)
                caches = replace(caches, cache=self._kept / CACHE)
            if part is not None:
                for one in part.passes:
                    partial = partial_folder(store_folder(Path(CACHE), one.key))
                    self._fetch(partial.as_posix(), on_file, weights=True)
                part = replace(part, cache=self.here / CACHE)
        return replace(
            job,
            folder=self.folder,
            trained_model=None if job.trained_model is None else self.moved(job.trained_model),
            resume_from=None if job.resume_from is None else self.moved(job.resume_from),
            earlier=tuple(self.moved(folder) for folder in job.earlier),
            answers=None if job.answers is None else self.moved(job.answers),
            places=replace(job.places, judge_cache=self._replies.folder),
            caches=caches,
            shard=part,
            share=self.share,
        )

    def share(self) -> None:
        """Have the model that the first worker left in the job's folder on all workers' machines.

        All workers come here together.

        Raises:
            StorageError: it cannot be copied.
        """
        workers = current_workers()
        if workers.first:
            self.uploader.copy()
        workers.wait()
        if not (self.folder / TRAINED).exists():
            with _locked(_beside(self.here, ".bring")), self.uploader.waiting():
                key = self._below(self.folder, self.here)
                self._fetch(f"{key}/{MODEL}", weights=True)
                self._remote.get(f"{key}/{TRAINED}", self.folder / TRAINED)
        workers.wait()

    def drop_what_is_past(self) -> None:
        """Remove from the storage what attempts before left, where this one has the trained model.

        Raises:
            StorageError: it cannot be removed.
        """
        if not ((self.folder / TRAINED).exists() and (self.folder / MODEL).is_dir()):
            return
        for key in self._past:
            self._remote.remove_all(key)
        if (self.folder / ROUNDS).is_dir():  # they were taken over
            for earlier in self._earlier:
                self._remote.remove_all(f"{earlier}/{ROUNDS}")
        trained = read_trained(self.folder)
        if trained is not None and trained.picked:  # what it was picked from
            own = self._below(self.folder, self.here)
            self._remote.remove_all(f"{own}/{KEPT}")
            for point in trained.picked["points"]:
                self._remote.remove_all(f"{own}/{MODEL}/{step_name(point['step'])}")

    def _below(self, path: Path, root: Path | None = None) -> str:
        return path.absolute().relative_to(root or self._workdir).as_posix()

    def _fetch(
        self, key: str, on_file: OnFile = lambda done, total: None, *, weights: bool = False
    ) -> None:
        fetch_folder(self._remote, self.here, key, weights=weights, on_file=on_file)

    def _fetch_resumed(self, job: Job, folder: Path, on_file: OnFile) -> None:
        """Bring what a training goes on from: a trained model, else the newest whole checkpoint."""
        key = self._below(folder)
        self._fetch(key, on_file)
        if (self.moved(folder) / TRAINED).exists() and (self.moved(folder) / MODEL).is_dir():
            self._fetch(f"{key}/{MODEL}", on_file, weights=True)
            self._past.add(f"{key}/{MODEL}")
            return
        for attempt in dict.fromkeys([folder, *job.earlier]):
            if job.config.training.score_at:
                self._fetch(f"{self._below(attempt)}/{KEPT}", on_file, weights=True)
        for attempt in dict.fromkeys([folder, *job.earlier]):
            for checkpoint in sorted((self.moved(attempt) / CHECKPOINTS).glob("step-*"))[::-1]:
                self._fetch(self._below(checkpoint, self.here), on_file, weights=True)
                if checkpoint_problem(checkpoint, job.config) is None:
                    return

    def _fetch_store(self, key: str, identity: Mapping[str, Any], on_file: OnFile) -> None:
        """Copy a store to this machine, once; the job itself says so where it is not whole."""
        folder = store_folder(self._kept / CACHE, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_beside(folder, ".lock")):
            with contextlib.suppress(BrokenStoreError):
                verify(folder, identity)
                return
            remove(folder)
            coming = folder.with_name(f".{folder.name}.coming")
            with contextlib.suppress(FileNotFoundError):  # it was removed there meanwhile
                sizes = self._remote.sizes(f"{CACHE}/{folder.name}")
                for done, (each, size) in enumerate(sizes.items(), start=1):
                    file = coming / each.rpartition("/")[2]
                    if not file.exists() or file.stat().st_size != size:  # else of an earlier try
                        self._remote.get(each, file)
                    on_file(done, len(sizes))
                coming.replace(folder)
                with contextlib.suppress(BrokenStoreError):
                    verify(folder, identity)
                    return
                remove(folder)  # the next job copies it anew


def _judged(job: Job) -> bool:
    """Return whether a job may ask a judge: as it scores, along its training, or for its pairs."""
    config = job.config
    judged = {side for side, benchmark in sides(config.benchmarks) if benchmark.judge is not None}
    if job.scores:
        return bool(judged)
    along = bool(config.training.score_at) and "select" in judged
    return job.trains and (along or (config.pairs.rounds > 0 and config.pairs.judge is not None))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which goes with the process, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _tried(path: Path) -> Iterator[bool]:
    """Hold a file's lock where nobody does; yield whether it is held."""
    with path.open("a") as file:
        yield _lock_at_once(file)


def _lock_at_once(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}{suffix}")


def _remove_dead(jobs: Path) -> None:
    """Remove what jobs left on this machine whose processes are gone."""
    for lock in jobs.glob("*.lock"):
        with lock.open("a") as file:
            if _lock_at_once(file):
                job = lock.with_suffix("")
                shutil.rmtree(job, ignore_errors=True)
                for beside in (_beside(job, ".first"), _beside(job, ".bring"), lock):
                    beside.unlink(missing_ok=True)
