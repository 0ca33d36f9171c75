"""run, plan, status, report: run a study, and show its state."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.common.cost import (
    cost_options,
    cost_request,
    estimate_cost,
    require_device_memory,
)
from orchestrator.commands.common.options import (
    combine_options,
    load_plan,
    study_options,
    tracking_option,
)
from orchestrator.commands.common.output import print_json, print_lines
from orchestrator.commands.common.param_types import (
    AddressType,
    FloatType,
    IntegerType,
    PathType,
    TextType,
)
from orchestrator.executors import EXECUTORS, make_executor

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cost.budget import TrimmedPlan
    from orchestrator.cost.study_cost import CostRequest
    from orchestrator.plan.plan import Plan
    from orchestrator.report.results import RunOutcome
    from orchestrator.study.limits import Limits


_executor_options = combine_options(
    click.option(
        "--executor",
        type=click.Choice([*EXECUTORS]),
        default="ray",
        show_default=True,
        help="ray: Tune schedules, Train executes. inline: one after another in this process.",
    ),
    click.option(
        "--max-concurrent", type=IntegerType(1, 10**6), help="Maximum number of trials at a time."
    ),
)
_HOURS_TYPE = FloatType(is_positive=True, high=1e6)
#: Options on cost, as `cost_request` takes them.
_COST_OPTIONS = (
    "calibrate", "rates", "rate", "price_per_gpu_hour", "price_per_cpu_hour", "device_memory",
    "device", "gpus", "budget",
)  # fmt: skip


@click.command(epilog="Example: chip-ablate run ablations/encoder.yaml --seeds 0 1 2 3")
@study_options
@_executor_options
@cost_options
@click.option("--max-hours", type=_HOURS_TYPE, help="Stop after this many hours.")
@click.option("--max-gpu-hours", type=_HOURS_TYPE, help="Stop after this many GPU hours.")
@click.option("--max-failures", type=IntegerType(1), help="Stop after this many failed trials.")
@click.option(
    "--address",
    type=AddressType(),
    help="A running Ray cluster; without it, Ray is started and stopped here.",
)
@click.option(
    "--cluster",
    type=PathType("file"),
    help="The file of a running cluster: run the study there, follow it, and fetch the report.",
)
@click.option(
    "--storage",
    type=TextType(),
    help="Storage for models and reference passes: a folder that all machines can access, or "
    "s3://…, gs://…; default: WORKDIR.",
)
@tracking_option
def run(study: str, workdir: Path, cluster: Path | None, as_json: bool, **options: Any) -> int:
    """Run the missing trials of a study, and report all of it."""
    if cluster is not None:
        from orchestrator.commands.common.remote_run import run_remotely

        return run_remotely(cluster, study, workdir=workdir, as_json=as_json, **options)
    from rich.console import Console

    from orchestrator.executors.base import ExecutorSettings
    from orchestrator.jobs.job import StopRequest
    from orchestrator.report.writers.terminal import result_lines, resume_command, sync_command
    from orchestrator.run import check_can_start, check_remaining_rows, run_study
    from orchestrator.storage.binding import bind_storage
    from orchestrator.storage.remote import validate_uri
    from orchestrator.tracking.projection import MlflowProjection
    from orchestrator.tracking.records import StoreRecord
    from orchestrator.tracking.tracker import Tracker

    run_options = _RunOptions(**{name: options.pop(name) for name in _RunOptions.__annotations__})
    _check_inline(
        run_options.executor, address=run_options.address, max_concurrent=run_options.max_concurrent
    )
    cost_values = {name: options.pop(name) for name in _COST_OPTIONS}
    request = cost_request(
        **cost_values,
        executor=run_options.executor,
        max_concurrent=run_options.max_concurrent,
        address=run_options.address,
    )
    plan = _make_startable_plan(study, workdir, run_options, options)
    limits = _merge_limits(
        plan.study.limits,
        max_hours=run_options.max_hours,
        max_gpu_hours=run_options.max_gpu_hours,
        max_failures=run_options.max_failures,
    )
    check_can_start(plan, workdir, limits, run_options.address)
    tracker = Tracker(MlflowProjection(workdir, run_options.tracking_uri))
    shown_record = StoreRecord(workdir, plan.study.name, run_options.tracking_uri)
    if not shown_record.is_current():
        tracker.check()
    if run_options.storage is not None:
        validate_uri(run_options.storage)
    _set_passive_waiting()
    # The stream itself: sys.stdout is not Ray's to print to while it runs.
    console = Console(file=sys.stderr if as_json else sys.stdout)
    trimmed = _print_plan(plan, workdir, console, request, always=any(cost_values.values()))
    require_device_memory(plan, workdir, request)
    check_remaining_rows(plan if trimmed is None else trimmed.plan, workdir, console)
    remote = bind_storage(workdir, run_options.storage)  # the first write
    stop = StopRequest()
    settings = ExecutorSettings(
        workdir=workdir,
        stop=stop,
        remote=remote,
        address=run_options.address,
        max_concurrent=run_options.max_concurrent,
        early_stopping=plan.study.early_stopping,
    )
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: make_executor(run_options.executor, settings),
        tracker=tracker,
        shown_record=shown_record,
        console=console,
        trimmed=trimmed,
        limits=limits,
        stop=stop,
    )
    command = resume_command(click.get_current_context().find_root().obj)
    sync_hint = sync_command(plan.study.name, workdir, run_options.tracking_uri)
    print_lines(result_lines(outcome, workdir, tracker.address, command, sync_hint), console)
    if as_json:
        print_json(_outcome_json(outcome, command, sync_hint, tracker.address))
    if outcome.interrupted:
        return 130
    if outcome.limit is not None:
        return 3
    return 1 if outcome.failed else 0


@dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """Options of `run` that do not change the study itself."""

    executor: str
    address: str | None
    max_concurrent: int | None
    storage: str | None
    tracking_uri: str | None
    max_hours: float | None
    max_gpu_hours: float | None
    max_failures: int | None


def _make_startable_plan(
    study: str, workdir: Path, options: _RunOptions, changes: dict[str, Any]
) -> Plan:
    """Return the plan of a study that the executor can run.

    Raises:
        UserError: the executor cannot run it, or the work directory has another study of this name.
    """
    from chip_core.utils.errors import UserError
    from orchestrator.plan.snapshot import require_same_study_file

    plan = load_plan(study, workdir=workdir, **changes)
    require_same_study_file(plan, workdir)
    if options.executor == "inline" and plan.study.early_stopping is not None:
        raise UserError(
            f"{plan.study.source}: early_stopping: compares running trainings, but the inline "
            "executor runs one at a time: use --executor ray, or leave the block out"
        )
    return plan


def _print_plan(
    plan: Plan, workdir: Path, console: Console, request: CostRequest, *, always: bool
) -> TrimmedPlan | None:
    """Print what will run, and its cost if that was requested or there is a budget.

    Returns:
        what of the plan is run, where a budget bounds it.
    """
    from orchestrator.report.writers.plan import cache_lines, plan_lines

    print_lines([*plan_lines(plan, workdir), *cache_lines(plan, workdir)], console)
    if plan.study.budget is None and not always:
        return None
    from orchestrator.cost.render import cost_lines

    cost = estimate_cost(plan, workdir, request, console.print)
    print_lines(cost_lines(cost), console)
    return cost.trimmed


def _outcome_json(
    outcome: RunOutcome, command: str, sync_hint: str, tracking: str | None
) -> dict[str, Any]:
    from orchestrator.report.writers.terminal import untracked_to_json

    return {
        **outcome.results.data,
        "executed": outcome.executed,
        "failed": outcome.failed,
        "stopped_at": outcome.limit,
        "left": outcome.results.left,
        "go_on": command,
        "report": [str(path) for path in outcome.report],
        "tracking": tracking,
        "untracked": untracked_to_json(outcome.waiting, sync_hint),
        "refused": dict(outcome.rejected_names),
        "compare": outcome.comparison_url,
    }


@click.command(epilog="Example: chip-ablate plan encoder --set optimizer.lr=2e-5")
@study_options
@_executor_options
@cost_options
def plan(
    study: str,
    workdir: Path,
    as_json: bool,
    executor: str,
    max_concurrent: int | None,
    **changes: Any,
) -> None:
    """Show what would run, what is done, which cells share a trial, and what it will cost."""
    from rich.console import Console

    from orchestrator.cost.render import cost_lines, cost_to_json
    from orchestrator.plan.snapshot import require_same_study_file
    from orchestrator.report.writers.plan import (
        cache_lines,
        plan_lines,
        plan_to_json,
        readiness_lines,
        trial_table,
    )

    _check_inline(executor, max_concurrent=max_concurrent)
    cost_values = {name: changes.pop(name) for name in _COST_OPTIONS}
    request = cost_request(
        **cost_values, executor=executor, max_concurrent=max_concurrent, is_preview=True
    )
    study_plan = load_plan(study, workdir=workdir, **changes)
    require_same_study_file(study_plan, workdir)
    cost = estimate_cost(study_plan, workdir, request, Console(stderr=True).print)
    if as_json:
        print_json({**plan_to_json(study_plan, workdir), "cost": cost_to_json(cost)})
        return
    print_lines(
        [
            *plan_lines(study_plan, workdir),
            *cache_lines(study_plan, workdir),
            *readiness_lines(study_plan, workdir),
            *cost_lines(cost),
            trial_table(study_plan, workdir),
        ]
    )


@click.command(epilog="Example: chip-ablate status encoder")
@study_options
def status(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Show the state of a study: each trial's state, attempts and figures."""
    from orchestrator.report.writers.plan import plan_to_json, status_lines, trial_table

    study_plan = load_plan(study, workdir=workdir, **changes)
    if as_json:
        print_json(plan_to_json(study_plan, workdir))
    else:
        print_lines([*status_lines(study_plan, workdir), trial_table(study_plan, workdir)])


@click.command(epilog="Example: chip-ablate report encoder")
@study_options
def report(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Write a study's report (HTML, Markdown, LaTeX, CSV, figures), and print the table."""
    from chip_core.utils.errors import UserError
    from orchestrator.plan.snapshot import require_same_study_file
    from orchestrator.report.cached import rewrite_report
    from orchestrator.report.writers.files import PAGE_FILE, report_folder
    from orchestrator.report.writers.terminal import report_lines
    from orchestrator.state.integrity import (
        describe_kept_report,
        read_ledger,
        trials_with_lost_figures,
    )

    study_plan = load_plan(study, workdir=workdir, **changes)
    require_same_study_file(study_plan, workdir)
    ledger = read_ledger(study_plan, workdir)
    folder = report_folder(workdir, study_plan.study.name)
    lost_trials = trials_with_lost_figures(study_plan, ledger)
    if lost_trials and (folder / PAGE_FILE).exists():
        raise UserError(describe_kept_report(folder / PAGE_FILE, study_plan, workdir, lost_trials))
    if not any(ledger[trial.fingerprint].evaluations for trial in study_plan.trials):
        raise UserError(
            f"study {study_plan.study.name} has no figures in {ledger.workdir}: run it first, "
            "or name its --workdir"
        )
    written = rewrite_report(study_plan, ledger, workdir, folder)
    if as_json:
        print_json({**written.results.data, "report": [str(path) for path in written.files]})
    else:
        print_lines(report_lines(written.results, written.files))


def _check_inline(executor: str, **ray_options: Any) -> None:
    """Refuse options that have no effect without Ray."""
    for name, value in ray_options.items():
        if executor == "inline" and value is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')} cannot be used with --executor inline, which runs "
                "one trial at a time in this process"
            )


def _merge_limits(study_limits: Limits | None, **given: float | None) -> Limits | None:
    """Return the study file's limits, overridden by those given on the command line."""
    from orchestrator.study.limits import Limits

    merged = {} if study_limits is None else study_limits.limits
    merged |= {name: value for name, value in given.items() if value is not None}
    return Limits.model_validate(merged) if merged else None


def _set_passive_waiting() -> None:
    """Let waiting OpenMP threads sleep: spinning ones make a small model's steps slow."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
