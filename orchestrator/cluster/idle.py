"""Stop an idle head node.

This runs on the head, from its start commands. Idle means that no job runs, no other machine is up
and nobody is logged in.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

POLL_INTERVAL = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The activity that keeps a head up."""

    jobs: int  # running or pending jobs
    machines: int  # machines other than the head
    users: int  # users that are logged in

    @property
    def is_idle(self) -> bool:
        """Return whether nothing keeps the head up."""
        return not (self.jobs or self.machines or self.users)


def query_activity() -> Activity:
    """Query the activity of this machine's cluster.

    Raises:
        ConnectionError: Ray does not run here.
    """
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    jobs = JobSubmissionClient().list_jobs()
    nodes = list_nodes(filters=[("state", "=", "ALIVE")])
    return Activity(
        jobs=sum(not job.status.is_terminal() for job in jobs),
        machines=max(0, len(nodes) - 1),
        users=len(psutil.users()),
    )


def stop_when_idle(
    seconds: float,
    command: str,
    *,
    query: Callable[[], Activity] = query_activity,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the head has been idle for some time, and then run a command once.

    A head whose Ray does not answer counts as idle, since nobody can use it.

    Args:
        seconds: how long it must be continuously idle.
        command: shell command that stops the machine.
        query: returns what keeps the head up.
        sleep: waits some seconds.
        now: a clock, in seconds.

    Raises:
        CalledProcessError: the command failed.
    """
    last_active = now()
    while now() - last_active < seconds:
        sleep(min(POLL_INTERVAL, seconds))
        try:
            idle = query().is_idle
        except Exception:  # of Ray's clients if Ray is gone
            idle = True
        if not idle:
            last_active = now()
    subprocess.run(["/bin/sh", "-c", command], check=True)
