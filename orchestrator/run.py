"""Run a study: its plan, its trials, its figures, its report."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from chip_core.evaluation.readiness import problems
from chip_core.utils.errors import ConfigError, UserError, warn_once
from chip_core.utils.files import write_json
from chip_core.utils.private import make_private
from orchestrator.cost import trimmed_trials
from orchestrator.cost.budget import Trimmed
from orchestrator.executors.base import Event, Executor, Job
from orchestrator.jobs.attempt import reason_of
from orchestrator.jobs.stopping import Stop
from orchestrator.plan import benchmark_identities
from orchestrator.plan.contamination import count_overlaps, restore_overlaps
from orchestrator.plan.plan import Plan, Trial
from orchestrator.plan.snapshot import require_same_file, save_plan_snapshot
from orchestrator.report.arm_views import arm_views
from orchestrator.report.cached import WrittenReport, find_report, rewrite_report
from orchestrator.report.figures.study_gallery import draw_rejected_images, varies_rejected_images
from orchestrator.report.outcomes import load_scores
from orchestrator.report.results import Outcome, results_of
from orchestrator.report.sections.provenance import last_ended
from orchestrator.report.summary import Summary, summarise
from orchestrator.report.writers.files import (
    PAGE,
    report_folder,
    require_room_for_report,
)
from orchestrator.runner.cache_build import attach_caches, build_caches
from orchestrator.runner.display import display_for
from orchestrator.runner.jobs import iter_phases, jobs_for, refresh_plan
from orchestrator.runner.limits import LimitedExecutor, check_limits
from orchestrator.runner.recorder import Recorder
from orchestrator.state.cache_plan import PlannedCache, plan_caches, require_disk_space
from orchestrator.state.integrity import kept_report_notice, lost_figures
from orchestrator.state.ledger import Ledger, study_lock
from orchestrator.state.search import failures_of, resolve_search
from orchestrator.storage.binding import exclusive_lease, storage_of
from orchestrator.study.limits import Limits
from orchestrator.tracking.base import Status, Tracker
from orchestrator.tracking.final_snapshot import keep_snapshot
from orchestrator.tracking.shown_state import ShownRecord, ShownState
from orchestrator.utils.cluster_address import check_address

OnEvent = Callable[[Event], None]
CACHE_RECORDS = "reference_passes.json"  # in a study's report folder


def run_study(
    plan: Plan,
    *,
    workdir: Path,
    executor: Callable[[], Executor],
    tracker: Tracker,
    console: Console,
    shown: ShownRecord | None = None,
    trimmed: Trimmed | None = None,
    stop: Stop | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """Run what is missing of a study and report the whole.

    Args:
        plan: the study's plan.
        workdir: where ledger, trials and reports lie.
        executor: makes the executor; asked only if something is to be run.
        tracker: shows the runs.
        console: where progress goes.
        shown: what the tracker's store was shown last; None: it is asked in any case.
        trimmed: what of the plan is run, where a budget bounds it; the report is of the whole.
        stop: asked by Ctrl-C and SIGTERM while trials run; the executor looks at the same.
        limits: where the run stops, whatever is left.

    Raises:
        UserError: another driver runs this study, the work directory cannot be written, a
            benchmark lacks something, or a limit can never be reached.
    """
    study = plan.study.name
    stop = stop or Stop()
    _check_writable(workdir)
    folder = report_folder(workdir, study)
    require_room_for_report(folder)  # now, and not after the trials
    with study_lock(workdir, study), exclusive_lease(storage_of(workdir), workdir):
        ledger, storage = Ledger(workdir), workdir
        require_same_file(plan, workdir)
        plan = refresh_plan(plan, ledger, storage)
        bounded = plan if trimmed is None else trimmed.plan
        jobs = jobs_for(bounded, ledger, storage)
        if limits is not None:
            check_limits(limits, plan)
        if jobs:
            check_ready(plan)
            require_disk_space(plan_caches(bounded, ledger, storage), storage)
        kept = save_plan_snapshot(plan, workdir, runs=bool(jobs))
        trimmed_trials.save_trimmed(workdir, study, trimmed)
        if jobs:
            benchmark_identities.save_identities(workdir, study, plan.benchmarks)
            for overlap in count_overlaps(plan, workdir):
                console.print(overlap.sentence, markup=False, highlight=False)
        else:
            if benchmark_identities.is_damaged(workdir, study):
                benchmark_identities.save_identities(workdir, study, plan.benchmarks)
            restore_overlaps(plan, workdir)
        recorder = Recorder(plan, ledger, storage, tracker, stop, kept.began)
        there = None
        if not jobs:
            _draw_gallery(plan, folder, console)
            there = find_report(plan, ledger, storage, folder)
            if there is not None and shown is not None and not lost_figures(plan, ledger):
                before = shown.shown(_shown_mark(there, failures_of(plan)))
                if before is not None:
                    return _nothing_anew(plan, ledger, workdir, there, before)
        recorder.open(plan, jobs)
        interrupted, limit = False, None
        records: list[dict[str, Any]] = []  # of the reference passes
        try:
            if jobs:
                with (
                    stop.install_signal_handlers(),
                    _opened(executor(), limits, stop, jobs) as running,
                ):
                    refresh = partial(refresh_plan, ledger=ledger, storage=storage)
                    for known, wanted in iter_phases(bounded, ledger, storage, refresh):
                        if known is not bounded:  # arms have chosen: these are the seeds' trials
                            save_plan_snapshot(known, workdir)
                        recorder.open(known if trimmed is None else plan, wanted)
                        passes = plan_caches(known, ledger, storage)
                        records = _make_passes(
                            passes, known, workdir, storage, running, console, earlier=records
                        )
                        jobs = attach_caches(wanted, passes, storage)
                        with display_for(console, jobs) as display:
                            listener = _both(recorder.take, display.take)
                            running.run([job for job, _, _ in jobs], listener, recorder.retry)
        except KeyboardInterrupt:
            limit = stop.limit
            interrupted = limit is None
            recorder.stop("stopped by the user" if limit is None else f"stopped at {limit}")
        except BaseException as error:
            # What failed may be what these write to; the next run sets it right.
            with suppress(UserError, OSError):
                recorder.stop(reason_of(error))
                tracker.close([], "FAILED", None)
            raise
        plan = resolve_search(plan, ledger)
        failed = {**recorder.failed, **failures_of(plan)}
        if jobs and not interrupted:
            _draw_gallery(plan, folder, console)
        lost = lost_figures(plan, ledger) if (folder / PAGE).exists() else []
        made = None if lost else there
        if lost:
            warn_once(kept_report_notice(folder / PAGE, plan, workdir, lost))
        elif made is None:
            made = rewrite_report(plan, ledger, storage, folder)
        summary = None if made is None else made.summary
        if summary is None:  # the report was there, or is kept as it was
            summary = _summary(plan, ledger, storage)
        if not summary.left:
            limit = None  # its last trial ended there
        status: Status = "FINISHED"
        if failed or interrupted or limit:
            status = "KILLED" if interrupted or limit else "FAILED"
        arms, ended = arm_views(summary), last_ended(plan, ledger)
        keep_snapshot(workdir, study, arms, status, ended, since=kept.time)
        tracker.close(arms, status, folder, ended)
        waiting, refused, compare = tracker.waiting(), tracker.refused(), tracker.compare_address()
        if shown is not None and made is not None and made.mark is not None:
            ended_well = not interrupted and limit is None and failed == failures_of(plan)
            if ended_well and waiting is None:
                shown.keep(_shown_mark(made, failed), ShownState(compare=compare, refused=refused))
        return Outcome(
            results=results_of(summary) if made is None else made.results,
            summarised=partial(_given, summary),
            executed=recorder.executed,
            failed=failed,
            interrupted=interrupted,
            limit=limit,
            report=[] if made is None else list(made.files),
            compare=compare,
            held_back=stop.why,
            waiting=waiting,
            refused=refused,
        )


def _nothing_anew(
    plan: Plan, ledger: Ledger, storage: Path, made: WrittenReport, shown: ShownState
) -> Outcome:
    """Return how a run ended that had nothing to run, to write or to show."""
    return Outcome(
        results=made.results,
        summarised=partial(_summary, plan, ledger, storage),
        executed=0,
        failed=failures_of(plan),
        interrupted=False,
        limit=None,
        report=list(made.files),
        compare=shown.compare,
        refused=shown.refused,
    )


def _summary(plan: Plan, ledger: Ledger, storage: Path) -> Summary:
    return summarise(plan, ledger, load_scores(plan, ledger, storage))


def _given(summary: Summary) -> Summary:
    return summary


def _shown_mark(made: WrittenReport, failed: Mapping[str, str]) -> str:
    """Return a hash of what a tracker is shown when nothing is left to run."""
    text = json.dumps([made.mark, dict(failed)])
    return hashlib.sha256(text.encode()).hexdigest()


def check_startable(
    plan: Plan, workdir: Path, limits: Limits | None = None, address: str | None = None
) -> None:
    """Check, before anything is written, what a work directory's first run would be refused for.

    Later ones may have nothing to do, and then lack nothing: that is known under the study's lock.

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


def check_ready(plan: Plan) -> None:
    """Check that every benchmark can be scored, before anything is trained.

    Raises:
        ConfigError: what they lack, all of it.
    """
    lacking = problems(plan.study.benchmarks, plan.places)
    if lacking:
        raise ConfigError(lacking)


def _draw_gallery(plan: Plan, folder: Path, console: Console) -> None:
    """Draw the rejected images of a study on them; neither that nor Ctrl-C here fails the study.

    The report takes in what lies in its folder.
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
    executor: Executor, limits: Limits | None, stop: Stop, jobs: list[tuple[Job, Trial, int]]
) -> Iterator[Executor]:
    with executor.opened([job for job, _, _ in jobs]):
        yield executor if limits is None else LimitedExecutor(executor, limits, stop)


def _make_passes(
    passes: list[PlannedCache],
    plan: Plan,
    workdir: Path,
    storage: Path,
    executor: Executor,
    console: Console,
    *,
    earlier: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Make the reference passes; what became of each goes to the report's folder.

    Args:
        passes: those of the jobs to come.
        plan: the study's plan.
        workdir: where the report's folder lies.
        storage: where the passes lie.
        executor: within `opened`.
        console: where progress goes.
        earlier: what became of those that this run made before: it stays written.
    """
    if not passes:
        return earlier
    study = plan.study.name
    records = build_caches(passes, study=study, storage=storage, executor=executor, console=console)
    made = {record["hash"]: record for record in earlier}
    for record in records:
        before = made.get(record["hash"])
        if before is not None:
            record["trials"] += before["trials"]
            if before["seconds"] is not None:
                record |= {key: before[key] for key in ("state", "seconds")}
        made[record["hash"]] = record
    write_json(report_folder(workdir, study) / CACHE_RECORDS, list(made.values()))
    return list(made.values())


def _both(one: OnEvent, other: OnEvent) -> OnEvent:
    def listener(event: Event) -> None:
        one(event)
        other(event)

    return listener


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
