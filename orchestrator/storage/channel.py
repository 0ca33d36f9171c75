"""Pass files between a study's driver and its running jobs.

If the machines share a disk, both see the same files. If not, files go through the storage: the
driver copies the jobs' curves while they run, and everything but weights when they end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from chip_core.results import CURVES
from chip_core.utils.errors import StorageError
from chip_core.utils.files import write_atomically, write_bytes
from orchestrator.jobs.job import STOP, Job
from orchestrator.storage.download import fetch_folder
from orchestrator.storage.remote import Remote

#: Seconds between two copies of the jobs' curves from a storage.
EVERY = 10.0

_log = logging.getLogger(__name__)


class JobChannel:
    """The channel of a driver and jobs that share a disk."""

    def begun(self, job: Job) -> None:
        """Follow a job."""

    def tell(self, job: Job, name: str, text: str = "") -> None:
        """Write a file to a job's folder.

        Raises:
            OSError: it cannot be written.
            StorageError: it cannot be written to the storage.
        """
        write_atomically(job.folder / name, text)

    def ended(self, job: Job) -> None:
        """Fetch everything that a job left, except its weights.

        Raises:
            StorageError: it cannot be copied.
        """

    def close(self) -> None:
        """Follow no job any more."""


class RemoteJobChannel(JobChannel):
    """The channel of a driver and jobs that share a storage."""

    def __init__(self, remote: Remote, workdir: Path, *, every: float = EVERY) -> None:
        """Create a channel without jobs.

        Args:
            remote: the storage.
            workdir: the driver's work directory.
            every: seconds between two copies.
        """
        self._remote, self._workdir, self._every = remote, workdir.absolute(), every
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def begun(self, job: Job) -> None:
        """Follow a job."""
        with self._lock:
            self._jobs[job.id] = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
            self._thread.start()

    def tell(self, job: Job, name: str, text: str = "") -> None:
        """Write a file to a job's folder; see `JobChannel.tell`."""
        self._remote.write(f"{self._key(job)}/{name}", text.encode())

    def ended(self, job: Job) -> None:
        """Fetch everything that a job left; see `JobChannel.ended`."""
        with self._lock:
            self._jobs.pop(job.id, None)
        fetch_folder(self._remote, self._workdir, self._key(job))
        self._remote.remove([f"{self._key(job)}/{STOP}"])  # only needed while it ran

    def close(self) -> None:
        """Follow no job any more."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._every):
            with self._lock:
                jobs = list(self._jobs.values())
            try:
                found = self._remote.read(f"{self._key(job)}/{CURVES}" for job in jobs)
                with self._lock:  # jobs that ended meanwhile have newer files here
                    self._keep([job for job in jobs if job.id in self._jobs], found)
            except (StorageError, OSError) as error:  # they are copied when the job ends
                _log.warning("%s", error)

    def _keep(self, jobs: Sequence[Job], found: Mapping[str, bytes]) -> None:
        for job in jobs:
            content = found.get(f"{self._key(job)}/{CURVES}")
            if content is not None:
                write_bytes(job.folder / CURVES, content)

    def _key(self, job: Job) -> str:
        return job.folder.absolute().relative_to(self._workdir).as_posix()
