"""Run a study: its plan, its trials, its figures, its report."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from chip_core.config.trial import TrialConfig
from chip_core.data.source import SHAPES
from chip_core.evaluation.readiness import find_benchmark_problems
from chip_core.utils.errors import ConfigError, UserError, warn_once
from chip_core.utils.files import make_private, write_json
from orchestrator.cost.budget import TRIMMED_FILE, TrimmedPlan, save_trimmed
from orchestrator.executors.base import Executor, Job
from orchestrator.jobs.attempt import failure_reason
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan, Trial
from orchestrator.plan.snapshot import (
    is_identities_file_damaged,
    require_same_study_file,
    save_identities,
    save_plan_snapshot,
)
from orchestrator.plan.training_rows import (
    check_training_rows,
    count_overlaps,
    recount_damaged_overlaps,
    save_checked_rows,
)
from orchestrator.report.cached import WrittenReport, find_cached_report, rewrite_report
from orchestrator.report.figures.study_gallery import draw_rejected_images, varies_rejected_images
from orchestrator.report.outcomes import load_scores
from orchestrator.report.results import RunOutcome, build_arm_views, build_results
from orchestrator.report.sections.provenance import last_end_time
from orchestrator.report.summary import Summary, build_summary
from orchestrator.report.writers.files import (
    PAGE_FILE,
    check_report_folder,
    report_folder,
)
from orchestrator.runner.jobs import iter_phases, make_jobs, refresh_plan, sort_longest_first
from orchestrator.runner.limits import LimitedExecutor, check_limits
from orchestrator.runner.phase import PhaseRun, Recorder, run_study_server
from orchestrator.state.cache_plan import plan_caches, require_disk_space
from orchestrator.state.integrity import describe_kept_report, read_ledger, trials_with_lost_figures
from orchestrator.state.ledger import ENGINES_FOLDER, Ledger, lock_study
from orchestrator.state.search import resolve_search, search_failures
from orchestrator.storage.binding import exclusive_lease, find_storage
from orchestrator.study.limits import Limits
from orchestrator.tracking.records import StoreRecord, save_snapshot
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import Status, TrackingState
from orchestrator.utils.cluster_address import check_address

TrialJobs = list[tuple[Job, Trial, int]]
ExecutorContext = AbstractContextManager[Executor]
CACHE_RECORDS_FILE = "reference_passes.json"  # in a study's report folder


def run_study(
    plan: Plan,
    *,
    workdir: Path,
    executor: Callable[[], Executor],
    tracker: Tracker,
    console: Console,
    **options: Any,
) -> RunOutcome:
    """Run the missing trials of a study, and report the whole study.

    Args:
        plan: the study's plan.
        workdir: the work directory, with ledger, trials and reports.
        executor: creates the executor; called only if something is to run.
        tracker: tracker that shows the runs.
        console: where the progress is displayed.
        **options: further fields of `StudyRun`: `limits`, `stop`, `trimmed`, `shown_record`.

    Raises:
        UserError: another driver runs this study, the work directory cannot be written, something
            that a benchmark needs is missing, or a limit can never be reached.
    """
    run = StudyRun(
        plan=plan,
        workdir=workdir,
        executor=executor,
        tracker=tracker,
        console=console,
        **options,
    )
    return run.run()


@dataclass(kw_only=True)
class StudyRun:
    """One run of a study: prepare, run what is missing, report, show."""

    plan: Plan
    workdir: Path
    executor: Callable[[], Executor]
    tracker: Tracker
    console: Console
    #: record of what the tracker's store was shown last; None: the store is always queried
    shown_record: StoreRecord | None = None
    #: the part of the plan within a budget, which is run; the report covers the whole plan
    trimmed: TrimmedPlan | None = None
    #: stop request, made by Ctrl-C and SIGTERM while trials run, and checked by the executor
    stop: StopRequest = field(default_factory=StopRequest)
    #: limits at which the run stops
    limits: Limits | None = None

    def run(self) -> RunOutcome:
        """Run what is missing; see `run_study`."""
        study = self.plan.study.name
        _check_writable(self.workdir)
        self._report_folder = report_folder(self.workdir, study)
        #: Outcomes of reference passes, by hash.
        self._cache_records: dict[str, dict[str, Any]] = {}
        check_report_folder(self._report_folder)  # now, and not after the trials
        lease = exclusive_lease(find_storage(self.workdir), self.workdir)
        with lock_study(self.workdir, study), lease, ExitStack() as cleanup:
            self._ledger = Ledger(self.workdir)
            jobs = self._prepare()
            existing_report = None
            if not jobs:
                _draw_gallery(self.plan, self._report_folder, self.console)
                existing_report = find_cached_report(
                    self.plan, self._ledger, self.workdir, self._report_folder
                )
                shown_state = self._find_shown_state(existing_report)
                if existing_report is not None and shown_state is not None:
                    return _unchanged_outcome(
                        self.plan, self._ledger, self.workdir, existing_report, shown_state
                    )
            interrupted, limit = self._run_jobs(jobs, cleanup)
            self.plan = resolve_search(self.plan, self._ledger)
            if jobs and not interrupted:
                _draw_gallery(self.plan, self._report_folder, self.console)
            return self._finish_run(existing_report, interrupted, limit)

    def _prepare(self) -> TrialJobs:
        """Update the plan from the ledger, and return the jobs that are left.

        Raises:
            UserError: something that they need is missing.
        """
        workdir, ledger = self.workdir, self._ledger
        require_same_study_file(self.plan, workdir)
        self.plan = plan = refresh_plan(self.plan, ledger, workdir)
        self._trimmed_plan = plan if self.trimmed is None else self.trimmed.plan
        jobs = make_jobs(self._trimmed_plan, ledger, workdir)
        if self.limits is not None:
            check_limits(self.limits, plan)
        if jobs:
            check_requirements(plan)
            require_disk_space(plan_caches(self._trimmed_plan, ledger, workdir), workdir)
            training_configs = (job.config for job, _, _ in jobs if job.is_training)
            check_training_rows(plan, training_configs, workdir, self.console)
        save_checked_rows(plan, workdir)
        snapshot = save_plan_snapshot(plan, workdir, will_run=bool(jobs))
        self._planned_at = snapshot.time
        earlier_trimmed = self._report_folder.parent / TRIMMED_FILE  # of a run with a budget
        if self.trimmed is not None or earlier_trimmed.exists():
            save_trimmed(workdir, plan.study.name, self.trimmed)
        if jobs or is_identities_file_damaged(workdir, plan.study.name):
            save_identities(workdir, plan.study.name, plan.benchmarks)
        if jobs:
            for overlap in count_overlaps(plan, workdir):
                self.console.print(overlap.sentence, markup=False, highlight=False)
        else:
            recount_damaged_overlaps(plan, workdir)
        self._recorder = Recorder(plan, ledger, workdir, self.tracker, self.stop, snapshot.began)
        return jobs

    def _find_shown_state(self, existing_report: WrittenReport | None) -> TrackingState | None:
        """Return what the tracker was shown if neither report nor store needs an update."""
        if (
            existing_report is None
            or self.shown_record is None
            or trials_with_lost_figures(self.plan, self._ledger)
        ):
            return None
        return self.shown_record.load(
            _shown_state_hash(existing_report, search_failures(self.plan))
        )

    def _run_jobs(self, jobs: TrialJobs, cleanup: ExitStack) -> tuple[bool, str | None]:
        """Run all phases; return whether the user interrupted them, and the limit they stopped at.

        Any other exception is recorded in the tracker and raised.

        Args:
            jobs: the jobs to run.
            cleanup: closes the executor at its end, so that the report does not wait for that.
        """
        executor = self.executor() if jobs else None
        self._recorder.open_plan(self.plan, jobs)  # the store opens while the executor does
        if executor is None:
            self.tracker.confirm()
            return False, None
        opening = _open_executor(executor, self.limits, self.stop, jobs)
        try:
            with (
                self.stop.install_signal_handlers(),
                _close_in_background(opening, cleanup) as open_executor,
                run_study_server(
                    self.plan,
                    [job for job, _, _ in jobs],
                    open_executor,
                    self._engines_folder,
                    self.stop,
                ) as server,
            ):
                self.tracker.confirm()
                self._run_phases(open_executor, server)
        except KeyboardInterrupt:
            limit = self.stop.limit
            self._recorder.record_stop(
                "stopped by the user" if limit is None else f"stopped at {limit}"
            )
            return limit is None, limit
        except BaseException as error:
            # What failed may be the target of these writes; the next run corrects it.
            with suppress(UserError, OSError):
                self._recorder.record_stop(failure_reason(error))
                self.tracker.close([], "FAILED", None)
            raise
        return False, None

    @property
    def _engines_folder(self) -> Path:
        """Folder for the log of the study's server."""
        return self.workdir / ENGINES_FOLDER / self.plan.study.name

    def _run_phases(self, executor: Executor, server: Path | None) -> None:
        """Run the trials of each phase, and the reference caches that they read.

        Args:
            executor: within `open`.
            server: file with the address of the study's own server, if it has one.
        """
        workdir, ledger, recorder = self.workdir, self._ledger, self._recorder
        refresh = partial(refresh_plan, ledger=ledger, storage=workdir)
        for phase_plan, trial_jobs in iter_phases(self._trimmed_plan, ledger, workdir, refresh):
            # If the plan has changed, arms have chosen settings: these are the trials of their
            # seeds.
            if phase_plan is not self._trimmed_plan:
                save_plan_snapshot(phase_plan, workdir)
            if server is not None:
                trial_jobs = [
                    (replace(job, server=server), trial, number)
                    for job, trial, number in trial_jobs
                ]
            recorder.open_plan(phase_plan if self.trimmed is None else self.plan, trial_jobs)
            planned_caches = plan_caches(phase_plan, ledger, workdir)
            training_jobs = [job for job, _, _ in trial_jobs if job.is_training]
            if training_jobs and executor.count_slots(training_jobs[0]) > 1:
                trial_jobs = sort_longest_first(trial_jobs, phase_plan)
            phase = PhaseRun(
                trial_jobs,
                planned_caches,
                study=phase_plan.study.name,
                storage=workdir,
                recorder=recorder,
                console=self.console,
                on_caches_finished=self._save_cache_records,
            )
            phase.run(executor)

    def _save_cache_records(self, records: list[dict[str, Any]]) -> None:
        """Write the records of reference passes, with earlier phases', to the report's folder."""
        if not records:
            return
        saved_records = self._cache_records
        for record in records:
            previous = saved_records.get(record["hash"])
            if previous is not None:
                record["trials"] += previous["trials"]
                if previous["seconds"] is not None:
                    record |= {key: previous[key] for key in ("state", "seconds")}
            saved_records[record["hash"]] = record
        write_json(self._report_folder / CACHE_RECORDS_FILE, list(saved_records.values()))

    def _finish_run(
        self, existing_report: WrittenReport | None, interrupted: bool, limit: str | None
    ) -> RunOutcome:
        """Write the report, show the study, and return how it ended."""
        plan, ledger, tracker, recorder = self.plan, self._ledger, self.tracker, self._recorder
        failures = {**recorder.failures, **search_failures(plan)}
        report = self._write_report(existing_report)
        summary = None if report is None else report.summary
        if summary is None:  # the report was there already, or is kept unchanged
            summary = _summarize(plan, ledger, self.workdir)
        if not summary.remaining:
            limit = None  # its last trial ended there
        status: Status = "FINISHED"
        if failures or interrupted or limit:
            status = "KILLED" if interrupted or limit else "FAILED"
        arms, ended = build_arm_views(summary), last_end_time(plan, ledger)
        save_snapshot(self.workdir, plan.study.name, arms, status, ended, since=self._planned_at)
        tracker.close(arms, status, self._report_folder, ended)
        tracked = tracker.state()
        is_complete = tracked.pending is None and not interrupted and limit is None
        is_as_expected = is_complete and failures == search_failures(plan)
        if (
            self.shown_record is not None
            and report is not None
            and report.content_hash is not None
            and is_as_expected
        ):
            self.shown_record.save(_shown_state_hash(report, failures), tracked)
        return RunOutcome(
            results=build_results(summary) if report is None else report.results,
            make_summary=partial(_return_summary, summary),
            executed=recorder.executed_count,
            failed=failures,
            interrupted=interrupted,
            limit=limit,
            report=[] if report is None else list(report.files),
            comparison_url=tracked.compare,
            drain_reason=self.stop.drain_reason,
            waiting=tracked.pending,
            rejected_names=tracked.refused,
        )

    def _write_report(self, existing_report: WrittenReport | None) -> WrittenReport | None:
        """Return the report, rewritten if needed; None if a more complete one is kept."""
        plan, page = self.plan, self._report_folder / PAGE_FILE
        lost_trials = trials_with_lost_figures(plan, self._ledger) if page.exists() else []
        if lost_trials:
            warn_once(describe_kept_report(page, plan, self.workdir, lost_trials))
            return None
        return existing_report or rewrite_report(
            plan, self._ledger, self.workdir, self._report_folder
        )


def _unchanged_outcome(
    plan: Plan, ledger: Ledger, storage: Path, report: WrittenReport, shown_state: TrackingState
) -> RunOutcome:
    """Return the outcome of a run without anything to run, write or show."""
    return RunOutcome(
        results=report.results,
        make_summary=partial(_summarize, plan, ledger, storage),
        executed=0,
        failed=search_failures(plan),
        interrupted=False,
        limit=None,
        report=list(report.files),
        comparison_url=shown_state.compare,
        rejected_names=shown_state.refused,
    )


def _summarize(plan: Plan, ledger: Ledger, storage: Path) -> Summary:
    return build_summary(plan, ledger, load_scores(plan, ledger, storage))


def _return_summary(summary: Summary) -> Summary:
    return summary


def _shown_state_hash(report: WrittenReport, failures: Mapping[str, str]) -> str:
    """Return a hash of what a tracker is shown when nothing is left to run."""
    text = json.dumps([report.content_hash, dict(failures)])
    return hashlib.sha256(text.encode()).hexdigest()


def check_can_start(
    plan: Plan, workdir: Path, limits: Limits | None = None, address: str | None = None
) -> None:
    """Check, before anything is written, whether a first run in a work directory can start.

    Later runs may have nothing to do and then need nothing, which is known under the study's lock.

    Args:
        plan: the study's plan.
        workdir: the work directory.
        limits: of the run.
        address: of a running Ray cluster.

    Raises:
        UserError: a limit can never be reached, something that a benchmark needs is missing, or
            there is no such cluster.
    """
    if limits is not None:
        check_limits(limits, plan)
    if workdir.is_dir() and any(workdir.iterdir()):
        return
    check_requirements(plan)
    if address is not None:
        check_address(address)


def check_remaining_rows(plan: Plan, workdir: Path, console: Console) -> None:
    """Check the rows that are still to be trained on, before anything is written.

    Raises:
        ConfigError: rows are bad.
    """
    if all(arm.trials[0].config.data.source == SHAPES for arm in plan.arms):
        return  # drawn
    ledger, rule = read_ledger(plan, workdir), plan.study.early_stopping
    remaining: list[TrialConfig] = []
    for trial in (trial for arm in resolve_search(plan, ledger).arms for trial in arm.trials):
        record = ledger[trial.fingerprint]
        is_waiting = trial.blocked is not None and not trial.blocked.failed
        is_trained = record.model is not None or record.is_done(trial) or record.is_cut(rule)
        if is_waiting or not (trial.blocked or is_trained):
            remaining.append(trial.config)
    check_training_rows(plan, remaining, workdir, console)


def check_requirements(plan: Plan) -> None:
    """Check that every benchmark can be scored and every arm trained, before anything is trained.

    Raises:
        ConfigError: lists everything that they need and do not have.
    """
    missing = (
        find_benchmark_problems(plan.study.benchmarks, plan.data_paths) + plan.missing_requirements
    )
    if missing:
        raise ConfigError(missing)


def _draw_gallery(plan: Plan, folder: Path, console: Console) -> None:
    """Draw a study's rejected images, if it varies them. Errors and Ctrl-C here do not fail it.

    The report includes the figure.
    """
    if not varies_rejected_images(plan):
        return
    try:
        draw_rejected_images(plan, folder)
    except (Exception, KeyboardInterrupt) as error:  # whatever data or a user's strategy raise
        reason = Text(f"the rejected images are not drawn: {failure_reason(error)}")
        console.print(reason, soft_wrap=True)


@contextmanager
def _open_executor(
    executor: Executor, limits: Limits | None, stop: StopRequest, jobs: TrialJobs
) -> Iterator[Executor]:
    with executor.open([job for job, _, _ in jobs]):
        yield executor if limits is None else LimitedExecutor(executor, limits, stop)


@contextmanager
def _close_in_background(
    executor_context: ExecutorContext, cleanup: ExitStack
) -> Iterator[Executor]:
    """Close an executor in a thread, since Ray takes seconds; `cleanup` waits for its end."""
    thread, stack = cleanup.enter_context(ThreadPoolExecutor(1)), ExitStack()
    try:
        yield stack.enter_context(executor_context)
    finally:
        cleanup.callback(thread.submit(stack.close).result)


def _check_writable(workdir: Path) -> None:
    try:
        make_private(workdir)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir: {workdir}: cannot be written ({error.strerror}): "
            "choose another folder, or fix its permissions"
        ) from None
