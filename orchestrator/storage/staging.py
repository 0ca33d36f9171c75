"""Stage a job's files on a machine without the work directory.

The job's inputs are copied from the storage to this machine. It runs in a separate folder here,
whose content is uploaded while it runs. Reference caches and judges' replies are kept on the
machine for the next job; everything else is deleted at the end.
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

from chip_core.evaluation.readiness import list_sides
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
    """Where the files of one attempt at a job are; it is sent to all machines."""

    remote: Remote
    workdir: Path  # the driver's, absolute; a job's paths are below it
    token: str  # unique for each attempt

    @classmethod
    def for_attempt(cls, job: Job, remote: Remote, workdir: Path) -> StagingSpec:
        """Create the specification of an attempt."""
        return cls(remote=remote, workdir=workdir, token=f"{job.id}-{uuid.uuid4().hex[:12]}")

    @contextlib.contextmanager
    def workspace(self, folder: Path) -> Iterator[StagedWorkspace]:
        """Provide a job's workspace on this machine, and upload the job's files until the end.

        Of several workers on a machine, the first one uploads, and it ends last.

        Args:
            folder: folder of the job on the driver.

        Raises:
            StorageError: the storage cannot be written.
        """
        workspace = StagedWorkspace(self, folder)
        workspace.here.parent.mkdir(parents=True, exist_ok=True)
        with _beside(workspace.here, ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # so that it is not taken for a dead job's
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
        """Store the paths. `StagingSpec.workspace` creates the folders."""
        self._remote = Remote(spec.remote.uri, pauses=PATIENT)
        self._workdir = spec.workdir
        self._kept = node_folder(self._remote)
        self._replies = JudgeReplies(self._remote, self._kept)
        self._past: set[str] = set()  # keys of earlier attempts' files to drop once a model exists
        self._earlier = set[str]()  # keys of the earlier attempts
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
        """Convert a path of the driver to this machine's."""
        return self.here / self._below(path)

    def brought(self, job: Job, report: Report) -> Job:
        """Copy a job's inputs here, and return the job with this machine's paths.

        Args:
            job: job with the driver's paths.
            report: called for each file with the number of files of its folder.

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
        """Copy the model that the first worker saved to the machines of all workers.

        This is a collective call of all workers.

        Raises:
            StorageError: it cannot be copied.
        """
        workers = current_workers()
        if workers.is_main:
            self.uploader.copy()
        workers.barrier()
        if not (self.folder / TRAINED).exists():
            with _locked(_beside(self.here, ".bring")), self.uploader.waiting():
                key = self._below(self.folder, self.here)
                self._fetch(f"{key}/{MODEL}", weights=True)
                self._remote.get(f"{key}/{TRAINED}", self.folder / TRAINED)
        workers.barrier()

    def drop_what_is_past(self) -> None:
        """Remove earlier attempts' files from the storage if this one has the trained model.

        Raises:
            StorageError: it cannot be removed.
        """
        if not ((self.folder / TRAINED).exists() and (self.folder / MODEL).is_dir()):
            return
        for key in self._past:
            self._remote.remove_all(key)
        if (self.folder / ROUNDS).is_dir():  # they were reused
            for earlier in self._earlier:
                self._remote.remove_all(f"{earlier}/{ROUNDS}")
        trained = read_trained(self.folder)
        if trained is not None and trained.picked:  # the other checkpoints that it was picked from
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
        """Copy what a training resumes from: a trained model, else the newest whole checkpoint."""
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
        """Copy a cache to this machine, once. If it is broken, the job reports it."""
        folder = store_folder(self._kept / CACHE, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_beside(folder, ".lock")):
            with contextlib.suppress(BrokenStoreError):
                verify(folder, identity)
                return
            remove(folder)
            coming = folder.with_name(f".{folder.name}.coming")
            with contextlib.suppress(FileNotFoundError):  # removed from the storage meanwhile
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
                remove(folder)  # the next job copies it again


def _judged(job: Job) -> bool:
    """Return whether a job may use a judge: in scoring, during training, or for its pairs."""
    config = job.config
    judged = {
        side for side, benchmark in list_sides(config.benchmarks) if benchmark.judge is not None
    }
    if job.scores:
        return bool(judged)
    along = bool(config.training.score_at) and "select" in judged
    return job.trains and (along or (config.pairs.rounds > 0 and config.pairs.judge is not None))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which is released when the process ends, however it does."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _tried(path: Path) -> Iterator[bool]:
    """Try to lock a file without waiting, and yield whether it succeeded."""
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
    """Remove the files on this machine of jobs whose processes are gone."""
    for lock in jobs.glob("*.lock"):
        with lock.open("a") as file:
            if _lock_at_once(file):
                job = lock.with_suffix("")
                shutil.rmtree(job, ignore_errors=True)
                for beside in (_beside(job, ".first"), _beside(job, ".bring"), lock):
                    beside.unlink(missing_ok=True)
