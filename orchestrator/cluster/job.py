"""Submit a study as a Ray job, follow it, and download its outputs.

The job runs on the head, independently of the machine that submitted it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
from aiohttp import ClientError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from chip_core.utils.errors import UserError
from orchestrator.cluster.head import Head, UnreachableError

TextCallback = Callable[[str], None]
#: Ray stops the job with SIGINT, like Ctrl-C, and gives it time to write its files.
_STOP_ENVIRONMENT = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "600"}
#: Exceptions of a lost connection: of ssh, of HTTP and of Ray's client.
_CONNECTION_ERRORS = (
    UnreachableError,
    OSError,
    ClientError,
    requests.RequestException,
    RuntimeError,
)
STOPPED_EXIT_CODE = 130  # exit code of a stopped command
#: Seconds until the next try; the last value is repeated.
RETRY_WAITS = (1.0, 2.0, 5.0, 10.0, 30.0)
RECONNECT_TIMEOUT = 1800.0  # seconds without a connection until giving up


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """The record of a job on the machine that submitted it."""

    job: str
    cluster: str  # the cluster file's path
    study: str  # name of the study or variant
    workdir: str  # on the cluster
    folder: str  # folder of the job, on the cluster
    local: str  # folder for its report on this machine

    @property
    def as_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)


@contextlib.contextmanager
def connect(head: Head) -> Iterator[JobSubmissionClient]:
    """Connect to the cluster's job server through a tunnel, with its token.

    Raises:
        Unreachable: ssh gets no connection, or Ray does not run behind it.
        UserError: the cluster refuses the token.
    """
    # It logs every closed connection.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
    token = head.token()
    with head.tunnel() as port:
        headers = {"Authorization": f"Bearer {token}"}
        try:
            client = JobSubmissionClient(f"http://127.0.0.1:{port}", headers=headers)
        except (ConnectionError, requests.RequestException):
            raise UnreachableError(
                f"{head.host}: Ray does not run there: bring it up with `ray up`"
            ) from None
        except RuntimeError as error:
            raise UserError(f"{head.host}: {str(error).strip().splitlines()[0]}") from None
        yield client


def make_job_name(study: str) -> str:
    """Return a name for a job of a study."""
    safe_name = "".join(character if character.isalnum() else "-" for character in study)[:40]
    return f"{safe_name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def submit_job(
    head: Head, job: SubmittedJob, *, venv: str, arguments: Sequence[str], files: Path
) -> None:
    """Send a job's files and start it.

    Args:
        head: of the cluster.
        job: what it is.
        venv: the virtual environment on the cluster.
        arguments: arguments of `chip-ablate`; paths are relative to the job's folder.
        files: folder with the files that the arguments name.

    Raises:
        Unreachable: there is no connection.
        UserError: the cluster refuses it.
    """
    head.send(files, job.folder)
    command = shlex.join([f"{venv}/bin/chip-ablate", *arguments])
    # Messages go to the log, the results to a file that can be fetched.
    entrypoint = f"cd {shlex.quote(job.folder)} && exec {command} --json > result.json"
    with connect(head) as client:
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job.job,
                metadata=job.as_json,
                runtime_env={"env_vars": dict(_STOP_ENVIRONMENT)},
            )
        except RuntimeError as error:
            first_line = str(error).strip().splitlines()[0]
            raise UserError(f"{head.host}: the job was not accepted: {first_line}") from None


def follow_job(
    head: Head,
    job: str,
    write: TextCallback,
    notify: TextCallback,
    *,
    reconnect_timeout: float = RECONNECT_TIMEOUT,
) -> JobDetails:
    """Print a job's log until it has ended, and return the job's details.

    A lost connection is reopened. No part of the log is printed twice or left out.

    Args:
        head: of the cluster.
        job: its name.
        write: called with the log's text.
        notify: called with messages about the connection.
        reconnect_timeout: seconds without a connection until giving up.

    Raises:
        Unreachable: there was no connection for that long. The job may still run.
        UserError: the cluster has no such job.
    """
    offset, tries, last_contact = 0, 0, time.monotonic()
    while True:
        try:
            with connect(head) as client:
                _get_job_details(client, job)
                tries = 0
                for chunk in _tail_log(client, job, offset):
                    write(chunk)
                    offset += len(chunk)
                    last_contact = time.monotonic()
                details = client.get_job_info(job)
                if details.status.is_terminal():
                    return details
        except _CONNECTION_ERRORS as error:
            if isinstance(error, UserError) and not isinstance(error, UnreachableError):
                raise
            if time.monotonic() - last_contact > reconnect_timeout:
                raise UnreachableError(
                    f"{error}: the job may still be running: chip-ablate attach {job}"
                ) from None
            wait = RETRY_WAITS[min(tries, len(RETRY_WAITS) - 1)]
            tries += 1
            notify(f"connection lost ({_first_line(error)}); trying again in {wait:g} s")
            time.sleep(wait)


def request_stop(head: Head, job: str) -> bool:
    """Ask a job to stop, and return whether it was running.

    Raises:
        Unreachable: there is no connection.
        UserError: the cluster has no such job.
    """
    with connect(head) as client:
        _get_job_details(client, job)
        return bool(client.stop_job(job))


def find_latest_job(head: Head) -> SubmittedJob:
    """Return the latest job of this program.

    Raises:
        Unreachable: there is no connection.
        UserError: there is none.
    """
    with connect(head) as client:
        own_jobs = [details for details in client.list_jobs() if _is_own_job(details)]
    if not own_jobs:
        raise UserError(f"{head.host}: there is no job of chip-ablate: run one with --cluster")
    newest = max(own_jobs, key=lambda details: details.start_time or 0)
    return SubmittedJob(**newest.metadata)


def find_submitted_job(head: Head, job: str) -> SubmittedJob:
    """Return a job by its name.

    Raises:
        Unreachable: there is no connection.
        UserError: the cluster has no such job.
    """
    with connect(head) as client:
        details = _get_job_details(client, job)
    if not _is_own_job(details):
        raise UserError(f"{job}: is not a job of chip-ablate")
    return SubmittedJob(**details.metadata)


def exit_code(details: JobDetails) -> int:
    """Return the exit code of a job's command; for a stopped one, that of Ctrl-C."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return (
        STOPPED_EXIT_CODE
        if details.status == JobStatus.STOPPED
        else int(details.driver_exit_code or 1)
    )


def _is_own_job(details: JobDetails) -> bool:
    metadata = details.metadata or {}
    return set(metadata) == set(SubmittedJob.__dataclass_fields__)


def _get_job_details(client: JobSubmissionClient, job: str) -> JobDetails:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            raise UserError(
                f"{job}: the cluster has no such job: the cluster was restarted, or the job is on "
                "another one"
            ) from None
        raise


def _tail_log(client: JobSubmissionClient, job: str, offset: int) -> Iterator[str]:
    """Yield a job's log from a character on, as it grows, until the job has ended."""
    tail: Any = client.tail_job_logs(job)

    async def next_chunk() -> str | None:
        chunk: str | None = await anext(tail, None)
        return chunk

    with asyncio.Runner() as runner:  # on Ctrl-C it cancels the task, then raises
        while (chunk := runner.run(next_chunk())) is not None:
            skipped = min(offset, len(chunk))
            offset -= skipped
            if chunk[skipped:]:
                yield chunk[skipped:]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__
