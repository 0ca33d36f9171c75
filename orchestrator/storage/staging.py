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
    CACHE_KEY,
    BrokenStoreError,
    partial_folder,
    remove,
    store_folder,
    verify,
)
from chip_core.results import CHECKPOINTS, MODEL, TRAINED, Progress
from chip_core.selection.rule import KEPT, format_step_name
from chip_core.trained import read_trained
from chip_core.training.checkpoint import find_checkpoint_problem
from chip_core.utils.workers import current_workers
from orchestrator.jobs.job import COPYING_PHASE, STOP_FILE, Job
from orchestrator.storage.download import FileCallback, fetch_folder, node_cache_folder
from orchestrator.storage.judge_replies import JudgeReplies
from orchestrator.storage.remote import PATIENT_RETRY_PAUSES, RemoteStorage
from orchestrator.storage.uploader import Uploader

ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class StagingSpec:
    """Where the files of one attempt at a job are; it is sent to all machines."""

    remote: RemoteStorage
    workdir: Path  # the driver's, absolute; a job's paths are below it
    token: str  # unique for each attempt

    @classmethod
    def for_attempt(cls, job: Job, remote: RemoteStorage, workdir: Path) -> StagingSpec:
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
        workspace.root.parent.mkdir(parents=True, exist_ok=True)
        with _sibling(workspace.root, ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # so that it is not taken for a dead job's
            with _try_lock_file(_sibling(workspace.root, ".first")) as is_first:
                if is_first:
                    _remove_dead_workspaces(workspace.root.parent)
                workspace.folder.mkdir(parents=True, exist_ok=True)
                if not is_first:
                    yield workspace
                    return
                try:
                    with workspace.uploader:
                        yield workspace
                        fcntl.flock(lock, fcntl.LOCK_EX)  # the others have ended
                    workspace.remove_obsolete_files()
                finally:
                    shutil.rmtree(workspace.root, ignore_errors=True)


class StagedWorkspace:
    """A job's files on this machine."""

    def __init__(self, spec: StagingSpec, folder: Path) -> None:
        """Store the paths. `StagingSpec.workspace` creates the folders."""
        self._remote = RemoteStorage(spec.remote.uri, pauses=PATIENT_RETRY_PAUSES)
        self._workdir = spec.workdir
        self._node_folder = node_cache_folder(self._remote)
        self._replies = JudgeReplies(self._remote, self._node_folder)
        #: Keys of earlier attempts' files to drop once a model exists.
        self._obsolete_keys = set[str]()
        self._earlier_keys = set[str]()  # keys of the earlier attempts
        self.root = self._node_folder / "jobs" / spec.token
        self.folder = self.local_path(folder)
        self.uploader = Uploader(
            self._remote,
            [self.folder, self.root / CACHE_KEY],
            self.root,
            incoming=[self.folder / STOP_FILE],
            on_copy=self._replies.push,
        )

    def local_path(self, path: Path) -> Path:
        """Convert a path of the driver to this machine's."""
        return self.root / self._relative_key(path)

    def stage(self, job: Job, report: ProgressCallback) -> Job:
        """Copy a job's inputs here, and return the job with this machine's paths.

        Args:
            job: job with the driver's paths.
            report: called for each file with the number of files of its folder.

        Raises:
            StorageError: it cannot be copied.
        """
        caches, shard = job.caches, job.shard

        def report_file(done: int, total: int) -> None:
            report(Progress(phase=COPYING_PHASE, done=done, total=total))

        with _lock_file(_sibling(self.root, ".bring")), self.uploader.pause():
            for earlier in job.earlier_attempts:
                self._fetch(self._relative_key(earlier), report_file)
                self._earlier_keys.add(self._relative_key(earlier))
                self._obsolete_keys.add(f"{self._relative_key(earlier)}/{CHECKPOINTS}")
                self._obsolete_keys.add(f"{self._relative_key(earlier)}/{KEPT}")
            if job.trained_model is not None:
                self._fetch(self._relative_key(job.trained_model.parent), report_file)
                self._fetch(self._relative_key(job.trained_model), report_file, weights=True)
            if job.resume_from is not None:
                self._fetch_resumed(job, job.resume_from, report_file)
            if job.answers is not None:
                self._fetch(self._relative_key(job.answers), report_file)
            if _uses_judge(job):
                self._replies.pull()
            if caches is not None:
                for spec in caches.passes:
                    self._fetch_cache(spec.key, spec.identity, report_file)
                caches = replace(caches, cache=self._node_folder / CACHE_KEY)
            if shard is not None:
                for spec in shard.passes:
                    partial = partial_folder(store_folder(Path(CACHE_KEY), spec.key))
                    self._fetch(partial.as_posix(), report_file, weights=True)
                shard = replace(shard, cache=self.root / CACHE_KEY)
        return replace(
            job,
            folder=self.folder,
            trained_model=None if job.trained_model is None else self.local_path(job.trained_model),
            resume_from=None if job.resume_from is None else self.local_path(job.resume_from),
            earlier_attempts=tuple(self.local_path(folder) for folder in job.earlier_attempts),
            answers=None if job.answers is None else self.local_path(job.answers),
            data_paths=replace(job.data_paths, judge_cache=self._replies.folder),
            caches=caches,
            shard=shard,
            share_files=self.share_model,
        )

    def share_model(self) -> None:
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
            with _lock_file(_sibling(self.root, ".bring")), self.uploader.pause():
                key = self._relative_key(self.folder, self.root)
                self._fetch(f"{key}/{MODEL}", weights=True)
                self._remote.get(f"{key}/{TRAINED}", self.folder / TRAINED)
        workers.barrier()

    def remove_obsolete_files(self) -> None:
        """Remove earlier attempts' files from the storage if this one has the trained model.

        Raises:
            StorageError: it cannot be removed.
        """
        if not ((self.folder / TRAINED).exists() and (self.folder / MODEL).is_dir()):
            return
        for key in self._obsolete_keys:
            self._remote.remove_all(key)
        if (self.folder / ROUNDS).is_dir():  # they were reused
            for earlier in self._earlier_keys:
                self._remote.remove_all(f"{earlier}/{ROUNDS}")
        trained = read_trained(self.folder)
        if trained is not None and trained.picked:  # the other checkpoints that it was picked from
            own_key = self._relative_key(self.folder, self.root)
            self._remote.remove_all(f"{own_key}/{KEPT}")
            for checkpoint in trained.picked["points"]:
                self._remote.remove_all(f"{own_key}/{MODEL}/{format_step_name(checkpoint['step'])}")

    def _relative_key(self, path: Path, root: Path | None = None) -> str:
        return path.absolute().relative_to(root or self._workdir).as_posix()

    def _fetch(
        self, key: str, on_file: FileCallback = lambda done, total: None, *, weights: bool = False
    ) -> None:
        fetch_folder(self._remote, self.root, key, weights=weights, on_file=on_file)

    def _fetch_resumed(self, job: Job, folder: Path, on_file: FileCallback) -> None:
        """Copy what a training resumes from: a trained model, else the newest whole checkpoint."""
        key = self._relative_key(folder)
        self._fetch(key, on_file)
        if (self.local_path(folder) / TRAINED).exists() and (
            self.local_path(folder) / MODEL
        ).is_dir():
            self._fetch(f"{key}/{MODEL}", on_file, weights=True)
            self._obsolete_keys.add(f"{key}/{MODEL}")
            return
        for attempt in dict.fromkeys([folder, *job.earlier_attempts]):
            if job.config.training.score_at:
                self._fetch(f"{self._relative_key(attempt)}/{KEPT}", on_file, weights=True)
        for attempt in dict.fromkeys([folder, *job.earlier_attempts]):
            for checkpoint in sorted((self.local_path(attempt) / CHECKPOINTS).glob("step-*"))[::-1]:
                self._fetch(self._relative_key(checkpoint, self.root), on_file, weights=True)
                if find_checkpoint_problem(checkpoint, job.config) is None:
                    return

    def _fetch_cache(self, key: str, identity: Mapping[str, Any], on_file: FileCallback) -> None:
        """Copy a cache to this machine, once. If it is broken, the job reports it."""
        folder = store_folder(self._node_folder / CACHE_KEY, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(_sibling(folder, ".lock")):
            with contextlib.suppress(BrokenStoreError):
                verify(folder, identity)
                return
            remove(folder)
            partial = folder.with_name(f".{folder.name}.coming")
            with contextlib.suppress(FileNotFoundError):  # removed from the storage meanwhile
                sizes = self._remote.sizes(f"{CACHE_KEY}/{folder.name}")
                for done, (file_key, size) in enumerate(sizes.items(), start=1):
                    file = partial / file_key.rpartition("/")[2]
                    if not file.exists() or file.stat().st_size != size:  # else of an earlier try
                        self._remote.get(file_key, file)
                    on_file(done, len(sizes))
                partial.replace(folder)
                with contextlib.suppress(BrokenStoreError):
                    verify(folder, identity)
                    return
                remove(folder)  # the next job copies it again


def _uses_judge(job: Job) -> bool:
    """Return whether a job may use a judge: in scoring, during training, or for its pairs."""
    config = job.config
    judged_sides = {
        side for side, benchmark in list_sides(config.benchmarks) if benchmark.judge is not None
    }
    if job.is_scoring:
        return bool(judged_sides)
    judges_in_training = bool(config.training.score_at) and "select" in judged_sides
    return job.is_training and (
        judges_in_training or (config.pairs.rounds > 0 and config.pairs.judge is not None)
    )


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[None]:
    """Hold a file's lock, which is released when the process ends, however it does."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _try_lock_file(path: Path) -> Iterator[bool]:
    """Try to lock a file without waiting, and yield whether it succeeded."""
    with path.open("a") as file:
        yield _try_flock(file)


def _try_flock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}{suffix}")


def _remove_dead_workspaces(jobs: Path) -> None:
    """Remove the files on this machine of jobs whose processes are gone."""
    for lock in jobs.glob("*.lock"):
        with lock.open("a") as file:
            if _try_flock(file):
                job = lock.with_suffix("")
                shutil.rmtree(job, ignore_errors=True)
                for lock_file in (_sibling(job, ".first"), _sibling(job, ".bring"), lock):
                    lock_file.unlink(missing_ok=True)
