"""The one server that answers for all arms of a study, where the study wants one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from chip_core.evaluation.generators.sharing import (
    is_servable,
    is_shared,
    largest_rank,
    rank_problem,
)
from chip_core.utils.errors import TrialError, UserError
from orchestrator.executors.base import Executor, Job
from orchestrator.jobs.stopping import Stop
from orchestrator.plan.plan import Plan


@contextmanager
def opened_engine(
    plan: Plan, jobs: Sequence[Job], executor: Executor, folder: Path, stop: Stop
) -> Iterator[Path | None]:
    """Have a study's server running; yield the file that says where it is.

    None: the study has none, or no job would ask it.

    Args:
        plan: the study's plan.
        jobs: what is to run first.
        executor: within `opened`; gives it GPUs.
        folder: gets its log.
        stop: whether the run is to stop; nothing new begins once the server is gone for good.

    Raises:
        UserError: it does not start, or not where all jobs reach it.
        KeyboardInterrupt: the run was stopped meanwhile.
    """
    config = plan.base.config
    if not is_shared(config) or not any(_asks(job) for job in jobs):
        yield None
        return
    from chip_core.evaluation.generators.study_server import StudyServer  # it takes torch

    settings = config.evaluation.generator
    trained = [trial.config for trial in plan.trials if not trial.untrained]
    rank = largest_rank([*trained, *(job.config for job in jobs)])
    problem = rank_problem(rank)  # of what a search will try, which is in no arm yet
    if problem is not None:
        raise UserError(f"evaluation.generator.serves is study: {problem}")
    with ExitStack() as opened:
        devices = opened.enter_context(executor.reserved(settings.gpus))
        try:
            server = StudyServer(
                settings,
                config.model,
                folder,
                rank=rank,
                devices=devices,
                stopping=lambda: stop.asked,
                lost=stop.drain,
            )
            opened.enter_context(server)
        except (TrialError, OSError) as error:
            if stop.asked:
                raise KeyboardInterrupt from None
            raise UserError(f"evaluation.generator.serves is study: {error}") from None
        yield server.address


def _asks(job: Job) -> bool:
    """Return whether a job asks the server that others ask too."""
    return not job.scores and (job.untrained or is_servable(job.config))
