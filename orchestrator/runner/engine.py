"""Run the inference server that a study's arms share, if it has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chip_core.evaluation.generators.choice import (
    is_servable,
    is_shared,
    largest_rank,
    rank_problem,
)
from chip_core.utils.errors import TrialError, UserError
from orchestrator.executors.base import Executor, Job
from orchestrator.jobs.stopping import StopRequest
from orchestrator.plan.plan import Plan


@contextmanager
def run_study_server(
    plan: Plan, jobs: Sequence[Job], executor: Executor, folder: Path, stop: StopRequest
) -> Iterator[Path | None]:
    """Run a study's server, and yield the file with its address.

    It yields None if the study has none or no job would use it.

    Args:
        plan: the study's plan.
        jobs: the jobs of the first phase.
        executor: within `stack`; reserves the server's GPUs.
        folder: folder for the server's log.
        stop: whether the run should stop. If the server is lost for good, no new job starts.

    Raises:
        UserError: the server does not start, or not all jobs can reach it.
        KeyboardInterrupt: the run was stopped meanwhile.
    """
    config = plan.base.config
    if not is_shared(config) or not any(_uses_server(job) for job in jobs):
        yield None
        return
    from chip_core.evaluation.generators.study_server import StudyServer  # it imports torch

    settings = config.evaluation.generator
    trained_configs = [trial.config for trial in plan.trials if not trial.untrained]
    rank = largest_rank([*trained_configs, *(job.config for job in jobs)])
    problem = rank_problem(rank)  # of a search's draws, which are in no arm yet
    if problem is not None:
        raise UserError(f"evaluation.generator.serves is study: {problem}")
    with ExitStack() as stack:
        devices = stack.enter_context(executor.reserve_gpus(settings.gpus))
        try:
            server = StudyServer(
                settings,
                config.model,
                folder,
                rank=rank,
                devices=devices,
                should_stop=lambda: stop.is_requested,
                on_lost=stop.drain,
            )
            stack.enter_context(server)
        except (TrialError, OSError) as error:
            if stop.is_requested:
                raise KeyboardInterrupt from None
            raise UserError(f"evaluation.generator.serves is study: {error}") from None
        yield server.address


def _uses_server(job: Job) -> bool:
    """Return whether a job uses the shared server."""
    return not job.is_scoring and (job.untrained or is_servable(job.config))
