"""Decide which failed attempts are tried again."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.executors.base import Failed, Job


def next_retry(failed: Failed, *, lost: int) -> Job | None:
    """Return how a trial is tried again; None where it would come to the same.

    A lost worker or node: as it was, `engine.retries` times within a run. Memory that ran out in a
    training: with half the micro-batch, down to one; the global batch stays. A wrong
    configuration, a loss that is no number, a full disk, a stop: never.

    Args:
        failed: how the attempt ended.
        lost: how often this trial was tried again in this run for having been lost.

    Returns:
        the job of the next attempt, all but its place: `id`, `folder`, what it goes on from.
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
    # Memory that ran out elsewhere may have been another process's.
    machine = failed.cause == "memory" and failed.from_outside
    if (failed.cause == "worker_lost" or machine) and lost < engine.retries:
        return job
    return None
