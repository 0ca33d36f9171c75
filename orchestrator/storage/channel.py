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
from orchestrator.jobs.job import STOP_FILE, Job
from orchestrator.storage.download import fetch_folder
from orchestrator.storage.remote import RemoteStorage

#: Seconds between two copies of the jobs' curves from a storage.
COPY_SECONDS = 10.0

_log = logging.getLogger(__name__)


class JobChannel:
    """The channel of a driver and jobs that share a disk."""

    def register(self, job: Job) -> None:
        """Follow a job."""

    def send_file(self, job: Job, name: str, text: str = "") -> None:
        """Write a file to a job's folder.

        Raises:
            OSError: it cannot be written.
            StorageError: it cannot be written to the storage.
        """
        write_atomically(job.folder / name, text)

    def collect(self, job: Job) -> None:
        """Fetch everything that a job left, except its weights.

        Raises:
            StorageError: it cannot be copied.
        """

    def close(self) -> None:
        """Stop following jobs."""


class RemoteJobChannel(JobChannel):
    """The channel of a driver and jobs that share a storage."""

    def __init__(
        self, remote: RemoteStorage, workdir: Path, *, interval: float = COPY_SECONDS
    ) -> None:
        """Create a channel without jobs.

        Args:
            remote: the storage.
            workdir: the driver's work directory.
            interval: seconds between two copies.
        """
        self._remote, self._workdir, self._interval = remote, workdir.absolute(), interval
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def register(self, job: Job) -> None:
        """Follow a job."""
        with self._lock:
            self._jobs[job.id] = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._copy_curves, name="storage", daemon=True)
            self._thread.start()

    def send_file(self, job: Job, name: str, text: str = "") -> None:
        """Write a file to a job's folder; see `JobChannel.send_file`."""
        self._remote.write(f"{self._job_key(job)}/{name}", text.encode())

    def collect(self, job: Job) -> None:
        """Fetch everything that a job left; see `JobChannel.collect`."""
        with self._lock:
            self._jobs.pop(job.id, None)
        fetch_folder(self._remote, self._workdir, self._job_key(job))
        self._remote.remove([f"{self._job_key(job)}/{STOP_FILE}"])  # only needed while it ran

    def close(self) -> None:
        """Stop following jobs."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _copy_curves(self) -> None:
        while not self._closed.wait(self._interval):
            with self._lock:
                jobs = list(self._jobs.values())
            try:
                contents = self._remote.read(f"{self._job_key(job)}/{CURVES}" for job in jobs)
                with self._lock:  # jobs that ended meanwhile have newer files here
                    self._save_curves([job for job in jobs if job.id in self._jobs], contents)
            except (StorageError, OSError) as error:  # they are copied when the job ends
                _log.warning("%s", error)

    def _save_curves(self, jobs: Sequence[Job], contents: Mapping[str, bytes]) -> None:
        for job in jobs:
            content = contents.get(f"{self._job_key(job)}/{CURVES}")
            if content is not None:
                write_bytes(job.folder / CURVES, content)

    def _job_key(self, job: Job) -> str:
        return job.folder.absolute().relative_to(self._workdir).as_posix()
