"""Decide which failed attempts are retried."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.executors.base import Job, JobFailed


def next_retry(failure: JobFailed, *, lost_count: int) -> Job | None:
    """Return the next attempt of a trial; None if it would fail in the same way.

    After a lost worker or node: unchanged, `engine.retries` times per run. After a training ran out
    of memory: with half the micro-batch, down to one, and the same global batch. After a wrong
    configuration, a loss that is not finite, a full disk or a stop: never.

    Args:
        failure: how the attempt ended.
        lost_count: how often this trial was retried in this run after being lost.

    Returns:
        the job of the next attempt; its `id`, its `folder` and what it resumes from are to be set.
    """
    job, engine = failure.job, failure.job.config.engine
    if failure.cause == "memory" and job.is_training and engine.micro_batch > 1:
        micro_batch = engine.micro_batch // 2
        config = job.config.model_copy(
            update={"engine": engine.model_copy(update={"micro_batch": micro_batch})}
        )
        note = (
            f"micro-batch {micro_batch} instead of {engine.micro_batch} with the same global "
            f"batch: {failure.reason}"
        )
        return replace(job, config=config, notes=(*job.notes, note))
    # Otherwise another process may have used up the memory.
    machine_lost = failure.cause == "memory" and failure.from_outside
    if (failure.cause == "worker_lost" or machine_lost) and lost_count < engine.retries:
        return job
    return None
