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
from orchestrator.cost import trimmed_trials
from orchestrator.cost.budget import TrimmedPlan
from orchestrator.executors.base import Executor, Job
from orchestrator.jobs.attempt import reason_of
from orchestrator.jobs.stopping import Stop
from orchestrator.plan import benchmark_identities
from orchestrator.plan.contamination import count_overlaps, restore_overlaps
from orchestrator.plan.plan import Plan, Trial
from orchestrator.plan.snapshot import require_same_file, save_plan_snapshot
from orchestrator.plan.training_rows import check_training_rows, keep_checked
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
from orchestrator.runner.engine import opened_engine
from orchestrator.runner.jobs import iter_phases, jobs_for, longest_first, refresh_plan
from orchestrator.runner.limits import LimitedExecutor, check_limits
from orchestrator.runner.phase import PhaseRun
from orchestrator.runner.recorder import Recorder
from orchestrator.state.cache_plan import plan_caches, require_disk_space
from orchestrator.state.integrity import kept_report_notice, ledger_of, lost_figures
from orchestrator.state.ledger import ENGINES, Ledger, study_lock
from orchestrator.state.search import failures_of, resolve_search
from orchestrator.storage.binding import exclusive_lease, storage_of
from orchestrator.study.limits import Limits
from orchestrator.tracking.records import StoreRecord, save_snapshot
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import Status, TrackingState
from orchestrator.utils.cluster_address import check_address

Jobs = list[tuple[Job, Trial, int]]
Opened = AbstractContextManager[Executor]
CACHE_RECORDS = "reference_passes.json"  # in a study's report folder


def run_study(
    plan: Plan,
    *,
    workdir: Path,
    executor: Callable[[], Executor],
    tracker: Tracker,
    console: Console,
    **options: Any,
) -> RunOutcome:
    """Run what is missing of a study, and report all of it.

    Args:
        plan: the study's plan.
        workdir: the work directory, with ledger, trials and reports.
        executor: creates the executor; called only if something is to run.
        tracker: tracker that shows the runs.
        console: where the progress is displayed.
        **options: further fields of `StudyRun`: `limits`, `stop`, `trimmed`, `shown`.

    Raises:
        UserError: another driver runs this study, the work directory cannot be written, a
            benchmark lacks something, or a limit can never be reached.
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
    shown: StoreRecord | None = None
    #: the part of the plan within a budget, which is run; the report covers the whole plan
    trimmed: TrimmedPlan | None = None
    #: stop request, made by Ctrl-C and SIGTERM while trials run, and checked by the executor
    stop: Stop = field(default_factory=Stop)
    #: limits at which the run stops
    limits: Limits | None = None

    def run(self) -> RunOutcome:
        """Run what is missing; see `run_study`."""
        study = self.plan.study.name
        _check_writable(self.workdir)
        self._folder = report_folder(self.workdir, study)
        self._passes: dict[str, dict[str, Any]] = {}  # what became of reference passes, by hash
        check_report_folder(self._folder)  # now, and not after the trials
        lease = exclusive_lease(storage_of(self.workdir), self.workdir)
        with study_lock(self.workdir, study), lease, ExitStack() as left:
            self._ledger = Ledger(self.workdir)
            jobs = self._prepare()
            there = None
            if not jobs:
                _draw_gallery(self.plan, self._folder, self.console)
                there = find_cached_report(self.plan, self._ledger, self.workdir, self._folder)
                before = self._shown_before(there)
                if there is not None and before is not None:
                    return _nothing_anew(self.plan, self._ledger, self.workdir, there, before)
            interrupted, limit = self._run_jobs(jobs, left)
            self.plan = resolve_search(self.plan, self._ledger)
            if jobs and not interrupted:
                _draw_gallery(self.plan, self._folder, self.console)
            return self._conclude(there, interrupted, limit)

    def _prepare(self) -> Jobs:
        """Bring the plan up to what the ledger says; return the jobs that are left.

        Raises:
            UserError: something that they need is missing.
        """
        workdir, ledger = self.workdir, self._ledger
        require_same_file(self.plan, workdir)
        self.plan = plan = refresh_plan(self.plan, ledger, workdir)
        self._bounded = plan if self.trimmed is None else self.trimmed.plan
        jobs = jobs_for(self._bounded, ledger, workdir)
        if self.limits is not None:
            check_limits(self.limits, plan)
        if jobs:
            check_ready(plan)
            require_disk_space(plan_caches(self._bounded, ledger, workdir), workdir)
            trained = (job.config for job, _, _ in jobs if job.trains)
            check_training_rows(plan, trained, workdir, self.console)
        keep_checked(plan, workdir)
        kept = save_plan_snapshot(plan, workdir, runs=bool(jobs))
        self._planned_at = kept.time
        trimmed_trials.save_trimmed(workdir, plan.study.name, self.trimmed)
        if jobs or benchmark_identities.is_damaged(workdir, plan.study.name):
            benchmark_identities.save_identities(workdir, plan.study.name, plan.benchmarks)
        if jobs:
            for overlap in count_overlaps(plan, workdir):
                self.console.print(overlap.sentence, markup=False, highlight=False)
        else:
            restore_overlaps(plan, workdir)
        self._recorder = Recorder(plan, ledger, workdir, self.tracker, self.stop, kept.began)
        return jobs

    def _shown_before(self, there: WrittenReport | None) -> TrackingState | None:
        """Return what the tracker was shown, where report and store need nothing anew."""
        if there is None or self.shown is None or lost_figures(self.plan, self._ledger):
            return None
        return self.shown.load(_shown_mark(there, failures_of(self.plan)))

    def _run_jobs(self, jobs: Jobs, left: ExitStack) -> tuple[bool, str | None]:
        """Run all phases; return whether the user interrupted them, and the limit they stopped at.

        Any other exception is recorded in the tracker and raised.

        Args:
            jobs: the jobs to run.
            left: closes the executor at its end, so that the report does not wait for that.
        """
        executor = self.executor() if jobs else None
        self._recorder.open(self.plan, jobs)  # the store opens while the executor does
        if executor is None:
            self.tracker.confirm()
            return False, None
        opening = _opened(executor, self.limits, self.stop, jobs)
        try:
            with (
                self.stop.install_signal_handlers(),
                _closed_beside(opening, left) as opened,
                opened_engine(
                    self.plan, [job for job, _, _ in jobs], opened, self._engines, self.stop
                ) as server,
            ):
                self.tracker.confirm()
                self._run_phases(opened, server)
        except KeyboardInterrupt:
            limit = self.stop.limit
            self._recorder.stop("stopped by the user" if limit is None else f"stopped at {limit}")
            return limit is None, limit
        except BaseException as error:
            # What failed may be the target of these writes; the next run corrects it.
            with suppress(UserError, OSError):
                self._recorder.stop(reason_of(error))
                self.tracker.close([], "FAILED", None)
            raise
        return False, None

    @property
    def _engines(self) -> Path:
        """Folder for the log of the study's server."""
        return self.workdir / ENGINES / self.plan.study.name

    def _run_phases(self, executor: Executor, server: Path | None) -> None:
        """Run the trials of each phase, and the reference caches that they read.

        Args:
            executor: within `opened`.
            server: says where the study's own server is, where it has one.
        """
        workdir, ledger, recorder = self.workdir, self._ledger, self._recorder
        refresh = partial(refresh_plan, ledger=ledger, storage=workdir)
        for known, wanted in iter_phases(self._bounded, ledger, workdir, refresh):
            if known is not self._bounded:  # arms have chosen: these are the seeds' trials
                save_plan_snapshot(known, workdir)
            if server is not None:
                wanted = [(replace(job, server=server), of, number) for job, of, number in wanted]
            recorder.open(known if self.trimmed is None else self.plan, wanted)
            passes = plan_caches(known, ledger, workdir)
            training = [job for job, _, _ in wanted if job.trains]
            if training and executor.slots(training[0]) > 1:
                wanted = longest_first(wanted, known)
            phase = PhaseRun(
                wanted,
                passes,
                study=known.study.name,
                storage=workdir,
                recorder=recorder,
                console=self.console,
                made=self._note_passes,
            )
            phase.run(executor)

    def _note_passes(self, records: list[dict[str, Any]]) -> None:
        """Write the records of reference passes, with earlier phases', to the report's folder."""
        if not records:
            return
        made = self._passes
        for record in records:
            before = made.get(record["hash"])
            if before is not None:
                record["trials"] += before["trials"]
                if before["seconds"] is not None:
                    record |= {key: before[key] for key in ("state", "seconds")}
            made[record["hash"]] = record
        write_json(self._folder / CACHE_RECORDS, list(made.values()))

    def _conclude(
        self, there: WrittenReport | None, interrupted: bool, limit: str | None
    ) -> RunOutcome:
        """Write the report, show the study, and return how it ended."""
        plan, ledger, tracker, recorder = self.plan, self._ledger, self.tracker, self._recorder
        failed = {**recorder.failed, **failures_of(plan)}
        made = self._report(there)
        summary = None if made is None else made.summary
        if summary is None:  # the report was there, or is kept as it was
            summary = _summary(plan, ledger, self.workdir)
        if not summary.remaining:
            limit = None  # its last trial ended there
        status: Status = "FINISHED"
        if failed or interrupted or limit:
            status = "KILLED" if interrupted or limit else "FAILED"
        arms, ended = build_arm_views(summary), last_end_time(plan, ledger)
        save_snapshot(self.workdir, plan.study.name, arms, status, ended, since=self._planned_at)
        tracker.close(arms, status, self._folder, ended)
        tracked = tracker.state()
        complete = tracked.pending is None and not interrupted and limit is None
        ended_well = complete and failed == failures_of(plan)
        if (
            self.shown is not None
            and made is not None
            and made.content_hash is not None
            and ended_well
        ):
            self.shown.save(_shown_mark(made, failed), tracked)
        return RunOutcome(
            results=build_results(summary) if made is None else made.results,
            make_summary=partial(_given, summary),
            executed=recorder.executed,
            failed=failed,
            interrupted=interrupted,
            limit=limit,
            report=[] if made is None else list(made.files),
            comparison_url=tracked.compare,
            drain_reason=self.stop.why,
            waiting=tracked.pending,
            rejected_names=tracked.refused,
        )

    def _report(self, there: WrittenReport | None) -> WrittenReport | None:
        """Return the report, rewritten if needed; None if a more complete one is kept."""
        plan, page = self.plan, self._folder / PAGE_FILE
        lost = lost_figures(plan, self._ledger) if page.exists() else []
        if lost:
            warn_once(kept_report_notice(page, plan, self.workdir, lost))
            return None
        return there or rewrite_report(plan, self._ledger, self.workdir, self._folder)


def _nothing_anew(
    plan: Plan, ledger: Ledger, storage: Path, made: WrittenReport, shown: TrackingState
) -> RunOutcome:
    """Return the outcome of a run without anything to run, write or show."""
    return RunOutcome(
        results=made.results,
        make_summary=partial(_summary, plan, ledger, storage),
        executed=0,
        failed=failures_of(plan),
        interrupted=False,
        limit=None,
        report=list(made.files),
        comparison_url=shown.compare,
        rejected_names=shown.refused,
    )


def _summary(plan: Plan, ledger: Ledger, storage: Path) -> Summary:
    return build_summary(plan, ledger, load_scores(plan, ledger, storage))


def _given(summary: Summary) -> Summary:
    return summary


def _shown_mark(made: WrittenReport, failed: Mapping[str, str]) -> str:
    """Return a hash of what a tracker is shown when nothing is left to run."""
    text = json.dumps([made.content_hash, dict(failed)])
    return hashlib.sha256(text.encode()).hexdigest()


def check_startable(
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
        UserError: a limit can never be reached, a benchmark lacks something, or there is no such
            cluster.
    """
    if limits is not None:
        check_limits(limits, plan)
    if workdir.is_dir() and any(workdir.iterdir()):
        return
    check_ready(plan)
    if address is not None:
        check_address(address)


def check_rows(plan: Plan, workdir: Path, console: Console) -> None:
    """Check the rows that are still to be trained on, before anything is written.

    Raises:
        ConfigError: rows are bad.
    """
    if all(arm.trials[0].config.data.source == SHAPES for arm in plan.arms):
        return  # drawn
    ledger, rule, left = ledger_of(plan, workdir), plan.study.early_stopping, list[TrialConfig]()
    for trial in (trial for arm in resolve_search(plan, ledger).arms for trial in arm.trials):
        record = ledger[trial.fingerprint]
        waits = trial.blocked is not None and not trial.blocked.failed
        trained = record.model is not None or record.done(trial) or record.is_cut(rule)
        if waits or not (trial.blocked or trained):
            left.append(trial.config)
    check_training_rows(plan, left, workdir, console)


def check_ready(plan: Plan) -> None:
    """Check that every benchmark can be scored and every arm trained, before anything is trained.

    Raises:
        ConfigError: what they lack, all of it.
    """
    lacking = find_benchmark_problems(plan.study.benchmarks, plan.places) + plan.lacking
    if lacking:
        raise ConfigError(lacking)


def _draw_gallery(plan: Plan, folder: Path, console: Console) -> None:
    """Draw a study's rejected images, if it varies them. Errors and Ctrl-C here do not fail it.

    The report includes the figure.
    """
    if not varies_rejected_images(plan):
        return
    try:
        draw_rejected_images(plan, folder)
    except (Exception, KeyboardInterrupt) as error:  # whatever data or a user's strategy raise
        reason = Text(f"the rejected images are not drawn: {reason_of(error)}")
        console.print(reason, soft_wrap=True)


@contextmanager
def _opened(
    executor: Executor, limits: Limits | None, stop: Stop, jobs: Jobs
) -> Iterator[Executor]:
    with executor.opened([job for job, _, _ in jobs]):
        yield executor if limits is None else LimitedExecutor(executor, limits, stop)


@contextmanager
def _closed_beside(opening: Opened, left: ExitStack) -> Iterator[Executor]:
    """Close an executor in a thread, as Ray takes seconds for it; `left` waits for its end."""
    thread, stack = left.enter_context(ThreadPoolExecutor(1)), ExitStack()
    try:
        yield stack.enter_context(opening)
    finally:
        left.callback(thread.submit(stack.close).result)


def _check_writable(workdir: Path) -> None:
    try:
        make_private(workdir)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir: {workdir}: cannot be written ({error.strerror}): "
            "choose another folder, or mend its permissions"
        ) from None
