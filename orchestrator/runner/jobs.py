"""Create the jobs of a plan, and recover what earlier attempts left."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chip_core import data as preference_data
from chip_core.config.trial import BenchmarkConfig, DataConfig, TrialConfig
from chip_core.results import MODEL
from chip_core.trained import has_model, model_problem
from chip_core.utils.errors import warn_once
from orchestrator.cost.workload import training_steps
from orchestrator.executors.base import Job
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.integrity import (
    attempts_of,
    check_results,
    record_results,
    result_problem,
    trial_folder,
)
from orchestrator.state.ledger import Ledger, TrialRecord, answers_of
from orchestrator.state.search import SearchTrial, resolve_search
from orchestrator.storage.binding import storage_of
from orchestrator.storage.download import fetch_trials
from orchestrator.tracking.views import Status, TrialView

#: Reason of an attempt whose driver did not record its end.
UNSEEN = "the driver of its study ended before it did"


def reconcile_attempts(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Record the results of attempts whose driver is gone, so that nothing finished runs again.

    Call this with the study's lock held, so that no other driver of the study runs.
    """
    study = plan.study.name
    record_results(plan, ledger, storage)
    for trial in plan.trials:
        for number, tried in ledger[trial.fingerprint].history.items():
            if tried.outcome is None and tried.study == study:
                ledger.ended(trial, study, number, "killed", UNSEEN)


def refresh_plan(plan: Plan, ledger: Ledger, storage: Path) -> Plan:
    """Bring the ledger up to date with all results of a plan, and resolve its searches.

    Resolved searches add trials, which the storage may have as well. Figures whose files are gone
    or changed are reported and count as missing.

    Raises:
        StorageError: the storage cannot be read.
    """
    remote, seen = storage_of(storage), set[str]()
    ledger.put_aside()
    while True:
        plan = resolve_search(plan, ledger)
        fingerprints = {trial.fingerprint for trial in plan.trials}
        if fingerprints <= seen:
            return plan
        if remote is not None:
            fetch_trials(remote, storage, fingerprints - seen)
        reconcile_attempts(plan, ledger, storage)
        if remote is not None and _drop_changed(plan, ledger, storage):
            fetch_trials(remote, storage, fingerprints - seen)
        check_results(plan, ledger, storage)
        seen |= fingerprints


def _drop_changed(plan: Plan, ledger: Ledger, storage: Path) -> bool:
    """Remove local copies that differ from what was written, and return whether there were any."""
    dropped = False
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        for key, fingerprint in trial.evaluations.items():
            scored = record.evaluations.get(fingerprint)
            if scored is not None and result_problem(key, scored, storage) is not None:
                for name in (scored.evaluation.scores, scored.evaluation.responses):
                    if (path := storage / scored.folder / name).is_file():
                        path.unlink()
                dropped = True
    return dropped


def jobs_for(plan: Plan, ledger: Ledger, storage: Path) -> list[tuple[Job, Trial, int]]:
    """Return (job, trial, attempt number) of what is left to run, the untrained model first.

    A trained trial without a benchmark's figures is only evaluated, not trained again. One with
    answers is only scored, without a model.
    """
    jobs = []
    remote = storage_of(storage) is not None  # weights are not here: a worker checks them
    rule = plan.study.early_stopping
    compared_with = {
        trial.fingerprint
        for arm in plan.arms
        for trial in (arm.trials if arm.baseline or arm.placebo else ())
    }
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        if record.done(trial) or record.is_cut(rule):
            continue
        attempt = max([record.attempts, *attempts_of(storage, trial)], default=0) + 1
        model = None if record.model is None else storage / record.model / MODEL
        if model is not None and not model.is_dir():
            model = None  # its weights were removed: train again
        if (
            model is not None
            and not remote
            and (why := model_problem(model, trial.config)) is not None
        ):
            warn_once(f"{trial.name}: {why}: it is trained again")
            model = None
        answers = answers_of(trial, record, storage)
        if answers is not None:
            model = None
        job = Job(
            id=_job_id(trial, attempt, scores=answers is not None),
            name=trial.name,
            config=_wanting(trial, record, anew=model is None and answers is None),
            folder=trial_folder(storage, trial) / f"attempt-{attempt}",
            answers=answers,
            untrained=trial.untrained,
            trained_model=model,
            resume_from=None
            if trial.untrained or model is not None or answers is not None
            else _to_resume(storage, trial),
            places=replace(plan.places, judge_cache=storage / "cache" / "judge"),
            earlier=tuple(reversed(attempts_of(storage, trial).values())),
            may_be_cut=rule is not None
            and not (trial.untrained or model is not None or answers is not None)
            and trial.fingerprint not in compared_with,
        )
        jobs.append((job, trial, attempt))
    return jobs


def next_attempt(job: Job, trial: Trial, storage: Path) -> tuple[Job, int]:
    """Return a trial's next attempt in the same run, and the attempt's number.

    It continues from what the earlier attempts left.

    Args:
        job: job of the previous attempt, with what changes this time.
        trial: the trial.
        storage: where the trials' folders are.
    """
    done = attempts_of(storage, trial)
    attempt = max([int(job.id.rpartition("-")[2]), *done]) + 1
    next_job = replace(
        job,
        id=_job_id(trial, attempt, scores=job.scores),
        folder=trial_folder(storage, trial) / f"attempt-{attempt}",
        resume_from=_to_resume(storage, trial) if job.trains else job.resume_from,
        earlier=tuple(reversed(done.values())),
    )
    return next_job, attempt


def iter_phases(
    plan: Plan, ledger: Ledger, storage: Path, refresh: Callable[[Plan], Any] = lambda plan: None
) -> Iterator[tuple[Plan, list[tuple[Job, Trial, int]]]]:
    """Yield the phases of a run: the plan as known by then, and its jobs.

    The searches of all arms come first. The seeds follow when all searches have ended.

    Args:
        plan: the plan as known so far.
        ledger: the ledger.
        storage: where the trials' folders are.
        refresh: records existing results of the newly resolved plan.
    """
    jobs = jobs_for(plan, ledger, storage)
    searching = [job for job in jobs if isinstance(job[1], SearchTrial) or job[1].untrained]
    if plan.study.tune is not None and searching:
        yield plan, searching
        plan = resolve_search(plan, ledger)
        refresh(plan)
        tried = {trial.fingerprint for _, trial, _ in searching}
        left = jobs_for(plan, ledger, storage)
        jobs = [job for job in left if job[1].fingerprint not in tried]
    if jobs:
        yield plan, jobs


def longest_first(
    jobs: Sequence[tuple[Job, Trial, int]], plan: Plan
) -> list[tuple[Job, Trial, int]]:
    """Return jobs seed by seed, within a seed from the longest to the shortest.

    Jobs that run in parallel then end at about the same time, since the last to start is short.
    The length is estimated from the configurations, and only affects the order. With early
    stopping, which compares trainings with those that have run, the planned order is kept.
    """
    if plan.study.early_stopping is not None:
        return list(jobs)
    ranks = {trial.fingerprint: rank for arm in plan.arms for rank, trial in enumerate(arm.trials)}
    rows = functools.cache(
        lambda data: preference_data.count_rows(DataConfig.model_validate_json(data))
    )

    def place(each: tuple[Job, Trial, int]) -> tuple[int, int, int]:
        job, trial, _ = each
        config, rank = job.config, ranks.get(trial.fingerprint, -1)
        if rank < 0 or not job.trains:  # the untrained model and the trials of a search
            return rank, 0, 0
        # The number of rows of hub data may be unknown here: then all are taken to have as many.
        steps = training_steps(config, rows(config.data.model_dump_json())) or 1
        views = steps * config.training.batch_size * len(config.objective.policy_reads)
        parts = (config.vision_encoder, config.projector, config.language_model)
        return rank, -views, -sum(part != "frozen" for part in parts)

    return sorted(jobs, key=place)


def trial_view(
    trial: Trial, ledger: Ledger, storage: Path, study: str, status: Status
) -> TrialView:
    """Return a tracker's view of a trial."""
    record = ledger[trial.fingerprint]
    attempts = [record.history[number] for number in sorted(record.history)]
    begun = [attempt.started for attempt in attempts if attempt.started is not None]
    ended = [attempt.ended for attempt in attempts if attempt.ended is not None]
    codes = [attempt.code for attempt in attempts if attempt.code is not None]
    return TrialView(
        trial=trial,
        status=status,
        metrics=record.metrics(trial),
        folders=[*attempts_of(storage, trial).values()],
        seconds=record.seconds,
        data=record.data,
        engine=record.engine,
        metadata={
            key: record.evaluations[fingerprint].evaluation.metadata
            for key, fingerprint in trial.evaluations.items()
            if fingerprint in record.evaluations
            and record.evaluations[fingerprint].evaluation.metadata
        },
        checkpoints={point["step"]: point["figures"] for point in record.picked.get("points", ())},
        reason=record.failure,
        cut=record.cut,
        reused_from=record.study if record.study not in (None, study) else None,
        code=codes[-1] if codes else None,
        began=min(begun, default=None),
        ended=max(ended, default=None),
    )


def _job_id(trial: Trial, attempt: int, *, scores: bool) -> str:
    return f"{trial.fingerprint[:16]}-{'score-' if scores else ''}{attempt}"


def _wanting(trial: Trial, record: TrialRecord, *, anew: bool) -> TrialConfig:
    """Return a trial's configuration with only the benchmarks that are still to be scored.

    Args:
        trial: the trial.
        record: record of the trial.
        anew: whether its model is trained again, so that everything is scored.
    """
    if anew and not trial.untrained:
        return trial.config
    missing = set(record.missing(trial))

    def kept(side: str) -> tuple[BenchmarkConfig, ...]:
        chosen = getattr(trial.config.benchmarks, side)
        return tuple(settings for settings in chosen if f"{side}/{settings.name}" in missing)

    benchmarks = trial.config.benchmarks.model_copy(
        update={"select": kept("select"), "report": kept("report")}
    )
    return trial.config.model_copy(update={"benchmarks": benchmarks})


def _to_resume(storage: Path, trial: Trial) -> Path | None:
    """Return the newest attempt that left a trained model, or else checkpoints.

    The worker checks whether they are complete.
    """
    attempts = list(attempts_of(storage, trial).values())
    left = [folder for folder in attempts if has_model(folder)]
    if attempts and not left:
        # Imported here, since it imports torch, which the driver of a first run does not need.
        from chip_core.training.checkpoint import list_checkpoints

        left = [folder for folder in attempts if list_checkpoints(folder)]
    return left[-1] if left else None
