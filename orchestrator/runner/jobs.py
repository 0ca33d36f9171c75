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
from chip_core.trained import find_model_problem, has_model
from chip_core.utils.errors import warn_once
from orchestrator.cost.workload import training_steps
from orchestrator.executors.base import Job
from orchestrator.plan.plan import Plan, Trial, trial_key
from orchestrator.state.integrity import (
    attempt_folders,
    check_results,
    find_result_problem,
    record_results,
    trial_folder,
)
from orchestrator.state.ledger import Ledger, TrialRecord, find_answers
from orchestrator.state.search import SearchTrial, resolve_search
from orchestrator.storage.binding import find_storage
from orchestrator.storage.download import fetch_trials
from orchestrator.tracking.views import Status, TrialView

#: Reason of an attempt whose driver did not record its end.
UNRECORDED_END = "the driver of its study ended before it did"


def reconcile_attempts(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Record the results of attempts whose driver is gone, so that nothing finished runs again.

    Call this with the study's lock held, so that no other driver of the study runs.
    """
    study = plan.study.name
    record_results(plan, ledger, storage)
    for trial in plan.trials:
        for number, attempt in ledger[trial.fingerprint].history.items():
            if attempt.outcome is None and attempt.study == study:
                ledger.record_end(trial, study, number, "killed", UNRECORDED_END)


def refresh_plan(plan: Plan, ledger: Ledger, storage: Path) -> Plan:
    """Bring the ledger up to date with all results of a plan, and resolve its searches.

    Resolved searches add trials, which may be in the storage already. Figures with missing or
    changed files are reported and count as missing.

    Raises:
        StorageError: the storage cannot be read.
    """
    remote, known_fingerprints = find_storage(storage), set[str]()
    ledger.move_damaged_lines()
    while True:
        if plan.study.tune is not None:
            plan = resolve_search(plan, ledger)
        fingerprints = {trial.fingerprint for trial in plan.trials}
        if fingerprints <= known_fingerprints:
            return plan
        new_keys = [trial_key(fingerprint) for fingerprint in fingerprints - known_fingerprints]
        if remote is not None:
            fetch_trials(remote, storage, new_keys)
        reconcile_attempts(plan, ledger, storage)
        if remote is not None and _remove_changed_copies(plan, ledger, storage):
            fetch_trials(remote, storage, new_keys)
        check_results(plan, ledger, storage)
        known_fingerprints |= fingerprints


def _remove_changed_copies(plan: Plan, ledger: Ledger, storage: Path) -> bool:
    """Remove local copies that differ from what was written, and return whether there were any."""
    found_changed = False
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        for key, fingerprint in trial.evaluations.items():
            scored = record.evaluations.get(fingerprint)
            if scored is not None and find_result_problem(key, scored, storage) is not None:
                for name in (scored.evaluation.scores, scored.evaluation.responses):
                    if (path := storage / scored.folder / name).is_file():
                        path.unlink()
                found_changed = True
    return found_changed


def make_jobs(plan: Plan, ledger: Ledger, storage: Path) -> list[tuple[Job, Trial, int]]:
    """Return (job, trial, attempt number) for everything left to run, the untrained model first.

    A trained trial without a benchmark's figures is only evaluated, not trained again. One with
    answers is only scored, without a model.
    """
    jobs = []
    is_remote = find_storage(storage) is not None  # weights are not here: a worker checks them
    rule = plan.study.early_stopping
    reference_trials = {
        trial.fingerprint
        for arm in plan.arms
        for trial in (arm.trials if arm.baseline or arm.placebo else ())
    }
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        if record.is_done(trial) or record.is_cut(rule):
            continue
        attempt = max([record.attempts, *attempt_folders(storage, trial)], default=0) + 1
        model = None if record.model is None else storage / record.model / MODEL
        if model is not None and not model.is_dir():
            model = None  # its weights were removed: train again
        if (
            model is not None
            and not is_remote
            and (problem := find_model_problem(model, trial.config)) is not None
        ):
            warn_once(f"{trial.name}: {problem}: it is trained again")
            model = None
        answers = find_answers(trial, record, storage)
        if answers is not None:
            model = None
        job = Job(
            id=_job_id(trial, attempt, scores=answers is not None),
            name=trial.name,
            config=_missing_benchmarks_config(
                trial, record, retrain=model is None and answers is None
            ),
            folder=trial_folder(storage, trial) / f"attempt-{attempt}",
            answers=answers,
            untrained=trial.untrained,
            trained_model=model,
            resume_from=None
            if trial.untrained or model is not None or answers is not None
            else _find_resumable(storage, trial),
            data_paths=replace(plan.data_paths, judge_cache=storage / "cache" / "judge"),
            earlier_attempts=tuple(reversed(attempt_folders(storage, trial).values())),
            can_stop_early=rule is not None
            and not (trial.untrained or model is not None or answers is not None)
            and trial.fingerprint not in reference_trials,
        )
        jobs.append((job, trial, attempt))
    return jobs


def next_attempt(job: Job, trial: Trial, storage: Path) -> tuple[Job, int]:
    """Return a trial's next attempt in the same run, and the attempt's number.

    It resumes from the files of the earlier attempts.

    Args:
        job: job of the previous attempt, with what changes this time.
        trial: the trial.
        storage: where the trials' folders are.
    """
    folders = attempt_folders(storage, trial)
    attempt = max([int(job.id.rpartition("-")[2]), *folders]) + 1
    next_job = replace(
        job,
        id=_job_id(trial, attempt, scores=job.is_scoring),
        folder=trial_folder(storage, trial) / f"attempt-{attempt}",
        resume_from=_find_resumable(storage, trial) if job.is_training else job.resume_from,
        earlier_attempts=tuple(reversed(folders.values())),
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
    jobs = make_jobs(plan, ledger, storage)
    search_jobs = [job for job in jobs if isinstance(job[1], SearchTrial) or job[1].untrained]
    if plan.study.tune is not None and search_jobs:
        yield plan, search_jobs
        plan = resolve_search(plan, ledger)
        refresh(plan)
        searched = {trial.fingerprint for _, trial, _ in search_jobs}
        remaining = make_jobs(plan, ledger, storage)
        jobs = [job for job in remaining if job[1].fingerprint not in searched]
    if jobs:
        yield plan, jobs


def sort_longest_first(
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

    def sort_key(entry: tuple[Job, Trial, int]) -> tuple[int, int, int]:
        job, trial, _ = entry
        config, rank = job.config, ranks.get(trial.fingerprint, -1)
        if rank < 0 or not job.is_training:  # the untrained model and the trials of a search
            return rank, 0, 0
        # The number of rows of hub data may be unknown here: then all data sets are assumed to be
        # equally long.
        steps = training_steps(config, rows(config.data.model_dump_json())) or 1
        views = steps * config.training.batch_size * len(config.objective.policy_reads)
        parts = (config.vision_encoder, config.projector, config.language_model)
        return rank, -views, -sum(part != "frozen" for part in parts)

    return sorted(jobs, key=sort_key)


def trial_view(
    trial: Trial, ledger: Ledger, storage: Path, study: str, status: Status
) -> TrialView:
    """Return a tracker's view of a trial."""
    record = ledger[trial.fingerprint]
    attempts = [record.history[number] for number in sorted(record.history)]
    start_times = [attempt.started for attempt in attempts if attempt.started is not None]
    end_times = [attempt.ended for attempt in attempts if attempt.ended is not None]
    code_versions = [attempt.code for attempt in attempts if attempt.code is not None]
    return TrialView(
        trial=trial,
        status=status,
        metrics=record.metrics(trial),
        folders=[*attempt_folders(storage, trial).values()],
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
        code=code_versions[-1] if code_versions else None,
        began=min(start_times, default=None),
        ended=max(end_times, default=None),
    )


def _job_id(trial: Trial, attempt: int, *, scores: bool) -> str:
    return f"{trial.fingerprint[:16]}-{'score-' if scores else ''}{attempt}"


def _missing_benchmarks_config(trial: Trial, record: TrialRecord, *, retrain: bool) -> TrialConfig:
    """Return a trial's configuration with only the benchmarks that are still to be scored.

    Args:
        trial: the trial.
        record: record of the trial.
        retrain: whether its model is trained again, so that everything is scored.
    """
    if retrain and not trial.untrained:
        return trial.config
    missing = set(record.missing_evaluations(trial))

    def missing_settings(side: str) -> tuple[BenchmarkConfig, ...]:
        settings_list = getattr(trial.config.benchmarks, side)
        return tuple(settings for settings in settings_list if f"{side}/{settings.name}" in missing)

    benchmarks = trial.config.benchmarks.model_copy(
        update={"select": missing_settings("select"), "report": missing_settings("report")}
    )
    return trial.config.model_copy(update={"benchmarks": benchmarks})


def _find_resumable(storage: Path, trial: Trial) -> Path | None:
    """Return the newest attempt with a trained model, or else with checkpoints.

    The worker checks whether they are complete.
    """
    attempts = list(attempt_folders(storage, trial).values())
    resumable = [folder for folder in attempts if has_model(folder)]
    if attempts and not resumable:
        # Imported here, since it imports torch, which the driver of a first run does not need.
        from chip_core.training.checkpoint import list_checkpoints

        resumable = [folder for folder in attempts if list_checkpoints(folder)]
    return resumable[-1] if resumable else None
