"""From a plan and the ledger to jobs, and from what workers left back to the ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from chip_core.config import BenchmarkConfig, TrialConfig
from chip_core.results import MODEL, read_result
from chip_core.trained import read_trained
from chip_core.training.checkpoint import checkpoints
from orchestrator.executors.base import Job
from orchestrator.ledger import Ledger, TrialRecord
from orchestrator.plan import Plan, Trial
from orchestrator.search import SearchTrial, settled
from orchestrator.storage.place import fetch_trials
from orchestrator.storage.settle import storage_of
from orchestrator.tracking.base import Status, TrialView


def trial_folder(storage: Path, trial: Trial) -> Path:
    """Return where a trial's attempts lie."""
    return storage / "trials" / trial.fingerprint[:16]


#: Why an attempt ended that nobody saw end.
UNSEEN = "the driver of its study ended before it did"


def adopt(plan: Plan, ledger: Ledger, storage: Path) -> None:
    """Record what became of attempts whose driver is gone: nothing finished is run again.

    Call it under the study's lock: then no driver of the study is at work.
    """
    study = plan.study.name
    for trial in plan.trials:
        for attempt, folder in _attempts(storage, trial).items():
            record = ledger[trial.fingerprint]
            # One that ended after another had taken its place adds nothing.
            if attempt in record.finished or record.done(trial):
                continue
            result = read_result(folder)
            if result is not None:
                ledger.finished(trial, study, attempt, str(folder.relative_to(storage)), result)
        for number, tried in ledger[trial.fingerprint].history.items():
            if tried.outcome is None and tried.study == study:
                ledger.ended(trial, study, number, "killed", UNSEEN)


def take_in(plan: Plan, ledger: Ledger, storage: Path) -> Plan:
    """Return a plan as far as it is known when all that is done of it is in the ledger.

    What searches chose makes trials known, of which a storage may have some, too.

    Raises:
        StorageError: the storage cannot be read.
    """
    remote, seen = storage_of(storage), set[str]()
    while True:
        plan = settled(plan, ledger)
        marks = {trial.fingerprint for trial in plan.trials}
        if marks <= seen:
            return plan
        if remote is not None:
            fetch_trials(remote, storage, marks - seen)
        adopt(plan, ledger, storage)
        seen |= marks


def jobs_for(plan: Plan, ledger: Ledger, storage: Path) -> list[tuple[Job, Trial, int]]:
    """Return what is still to run: (job, trial, number of its attempt), the untrained model first.

    A trial that is trained but lacks a benchmark's figures is scored, not trained again.
    """
    jobs = []
    rule = plan.study.early_stopping
    compared_with = {trial.fingerprint for trial in plan.baseline.trials}
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        if record.done(trial) or record.is_cut(rule):
            continue
        attempt = max([record.attempts, *_attempts(storage, trial)], default=0) + 1
        model = None if record.model is None else storage / record.model / MODEL
        if model is not None and not model.is_dir():
            model = None  # its weights were removed: train again
        job = Job(
            id=f"{trial.fingerprint[:16]}-{attempt}",
            name=trial.name,
            config=_wanting(trial, record, model),
            folder=trial_folder(storage, trial) / f"attempt-{attempt}",
            untrained=trial.untrained,
            trained_model=model,
            resume_from=None
            if trial.untrained or model is not None
            else _to_resume(storage, trial),
            places=replace(plan.places, judge_cache=storage / "cache" / "judge"),
            earlier=tuple(reversed(_attempts(storage, trial).values())),
            may_be_cut=rule is not None
            and not (trial.untrained or model is not None or trial.fingerprint in compared_with),
        )
        jobs.append((job, trial, attempt))
    return jobs


def next_attempt(job: Job, trial: Trial, storage: Path) -> tuple[Job, int]:
    """Return a trial's next attempt in the same run, and its number.

    It goes on from what the attempts before left.

    Args:
        job: the attempt before, with what is to be otherwise this time.
        trial: whose it is.
        storage: where its attempts lie.
    """
    done = _attempts(storage, trial)
    attempt = max([int(job.id.rpartition("-")[2]), *done]) + 1
    following = replace(
        job,
        id=f"{trial.fingerprint[:16]}-{attempt}",
        folder=trial_folder(storage, trial) / f"attempt-{attempt}",
        resume_from=_to_resume(storage, trial) if job.trains else job.resume_from,
        earlier=tuple(reversed(done.values())),
    )
    return following, attempt


def stages(
    plan: Plan, ledger: Ledger, storage: Path, look: Callable[[Plan], Any] = lambda plan: None
) -> Iterator[tuple[Plan, list[tuple[Job, Trial, int]]]]:
    """Yield what is to be run, with the plan as it is known by then.

    The searches of all arms come first; what they chose is run when all of them have ended.

    Args:
        plan: as it is known.
        ledger: what is done.
        storage: where trials lie.
        look: takes in what is done already of a plan that has come to be known.
    """
    jobs = jobs_for(plan, ledger, storage)
    searching = [job for job in jobs if isinstance(job[1], SearchTrial) or job[1].untrained]
    if plan.study.tune is not None and searching:
        yield plan, searching
        plan = settled(plan, ledger)
        look(plan)
        tried = {trial.fingerprint for _, trial, _ in searching}
        left = jobs_for(plan, ledger, storage)
        jobs = [job for job in left if job[1].fingerprint not in tried]
    if jobs:
        yield plan, jobs


def view(trial: Trial, ledger: Ledger, storage: Path, study: str, status: Status) -> TrialView:
    """Return what a tracker shows of a trial."""
    record = ledger[trial.fingerprint]
    attempts = [record.history[number] for number in sorted(record.history)]
    begun = [attempt.started for attempt in attempts if attempt.started is not None]
    ended = [attempt.ended for attempt in attempts if attempt.ended is not None]
    codes = [attempt.code for attempt in attempts if attempt.code is not None]
    return TrialView(
        trial=trial,
        status=status,
        metrics=record.metrics(trial),
        folders=[*_attempts(storage, trial).values()],
        seconds=record.seconds,
        data=record.data,
        engine=record.engine,
        how={
            key: record.evaluations[mark].evaluation.how
            for key, mark in trial.evaluations.items()
            if mark in record.evaluations and record.evaluations[mark].evaluation.how
        },
        reason=record.failure,
        cut=record.cut,
        reused_from=record.study if record.study not in (None, study) else None,
        code=codes[-1] if codes else None,
        began=min(begun, default=None),
        ended=max(ended, default=None),
    )


def _wanting(trial: Trial, record: TrialRecord, model: Path | None) -> TrialConfig:
    """Return the trial's configuration with the benchmarks that are still to be scored."""
    if not trial.untrained and model is None:
        return trial.config  # trained anew: everything is scored
    missing = set(record.missing(trial))

    def kept(side: str) -> tuple[BenchmarkConfig, ...]:
        chosen = getattr(trial.config.benchmarks, side)
        return tuple(settings for settings in chosen if f"{side}/{settings.name}" in missing)

    benchmarks = trial.config.benchmarks.model_copy(
        update={"select": kept("select"), "report": kept("report")}
    )
    return trial.config.model_copy(update={"benchmarks": benchmarks})


def _to_resume(storage: Path, trial: Trial) -> Path | None:
    """Return the newest attempt that left a trained model, else checkpoints.

    Whether checkpoints are whole, the worker sees.
    """
    attempts = list(_attempts(storage, trial).values())
    trained = [folder for folder in attempts if read_trained(folder) is not None]
    left = trained or [folder for folder in attempts if checkpoints(folder)]
    return left[-1] if left else None


def _attempts(storage: Path, trial: Trial) -> dict[int, Path]:
    """Return the attempts' folders by number, in order."""
    found = {}
    for folder in trial_folder(storage, trial).glob("attempt-*"):
        number = re.fullmatch(r"attempt-(\d+)", folder.name)
        if number:
            found[int(number[1])] = folder
    return dict(sorted(found.items()))
