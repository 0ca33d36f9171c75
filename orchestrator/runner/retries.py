"""Decide which failed attempts are retried."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.executors.base import Failed, Job


def next_retry(failed: Failed, *, lost: int) -> Job | None:
    """Return the next attempt of a trial; None if it would fail in the same way.

    After a lost worker or node: unchanged, `engine.retries` times per run. After a training ran out
    of memory: with half the micro-batch, down to one, and the same global batch. After a wrong
    configuration, a loss that is not finite, a full disk or a stop: never.

    Args:
        failed: how the attempt ended.
        lost: how often this trial was retried in this run after being lost.

    Returns:
        the job of the next attempt, with `id`, `folder` and what it resumes from yet to be set.
    """
    job, engine = failed.job, failed.job.config.engine
    if failed.cause == "memory" and job.trains and engine.micro_batch > 1:
        smaller = engine.micro_batch // 2
        config = job.config.model_copy(
            update={"engine": engine.model_copy(update={"micro_batch": smaller})}
        )
        note = (
            f"micro-batch {smaller} in place of {engine.micro_batch} with the same global batch: "
            f"{failed.reason}"
        )
        return replace(job, config=config, notes=(*job.notes, note))
    # Otherwise another process may have used up the memory.
    machine = failed.cause == "memory" and failed.from_outside
    if (failed.cause == "worker_lost" or machine) and lost < engine.retries:
        return job
    return None
