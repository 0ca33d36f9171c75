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

LOOK_EVERY = 30.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What keeps a head up."""

    jobs: int  # running or pending jobs
    machines: int  # machines other than the head
    people: int  # users that are logged in

    @property
    def idle(self) -> bool:
        """Return whether nothing keeps the head up."""
        return not (self.jobs or self.machines or self.people)


def activity() -> Activity:
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
        people=len(psutil.users()),
    )


def stop_when_idle(
    seconds: float,
    command: str,
    *,
    look: Callable[[], Activity] = activity,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the head has been idle for some time, then run a command once.

    A head whose Ray does not answer counts as idle, since nobody can use it.

    Args:
        seconds: how long it must be idle without a break.
        command: shell command that stops the machine.
        look: returns what keeps the head up.
        sleep: waits some seconds.
        now: a clock, in seconds.

    Raises:
        CalledProcessError: the command failed.
    """
    since = now()
    while now() - since < seconds:
        sleep(min(LOOK_EVERY, seconds))
        try:
            idle = look().idle
        except Exception:  # of Ray's clients if Ray is gone
            idle = True
        if not idle:
            since = now()
    subprocess.run(["/bin/sh", "-c", command], check=True)
