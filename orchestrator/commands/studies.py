"""run, plan, status, report: run a study, and show how far it is."""

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
    require_room,
    study_cost,
)
from orchestrator.commands.common.options import planned, study_options
from orchestrator.commands.common.output import print_json
from orchestrator.commands.common.param_types import Address, Location, Real, Text, Whole
from orchestrator.executors import EXECUTORS, make_executor

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cost.budget import TrimmedPlan
    from orchestrator.cost.study_cost import CostRequest
    from orchestrator.plan.plan import Plan
    from orchestrator.report.results import RunOutcome
    from orchestrator.state.ledger import Ledger
    from orchestrator.study.limits import Limits


def _executor_options(command: Any) -> Any:
    for option in (
        click.option(
            "--executor",
            type=click.Choice([*EXECUTORS]),
            default="ray",
            show_default=True,
            help="ray: Tune schedules, Train executes. inline: one after another in this process.",
        ),
        click.option("--max-concurrent", type=Whole(1, 10**6), help="Most trials at a time."),
    ):
        command = option(command)
    return command


_HOURS = Real(above_zero=True, high=1e6)
#: Options on cost, as `cost_request` takes them.
_OF_COST = (
    "calibrate", "rates", "rate", "price_per_gpu_hour", "price_per_cpu_hour", "device_memory",
    "device", "gpus", "budget",
)  # fmt: skip


@click.command(epilog="Example: chip-ablate run ablations/encoder.yaml --seeds 0 1 2 3")
@study_options
@_executor_options
@cost_options
@click.option("--max-hours", type=_HOURS, help="Stop after so many hours.")
@click.option("--max-gpu-hours", type=_HOURS, help="Stop when GPUs were held so long.")
@click.option("--max-failures", type=Whole(1), help="Stop when so many trials failed.")
@click.option(
    "--address", type=Address(), help="A running Ray cluster; without it Ray starts and stops here."
)
@click.option(
    "--cluster",
    type=Location("file"),
    help="The file of a running cluster: run it there, look on, fetch the report.",
)
@click.option(
    "--storage",
    type=Text(),
    help="Where models and reference passes go: a folder that all machines see, or s3://…, gs://…; "
    "default: WORKDIR.",
)
@click.option("--tracking-uri", help="MLflow; default: MLFLOW_TRACKING_URI, or WORKDIR/mlflow.db.")
def run(study: str, workdir: Path, cluster: Path | None, as_json: bool, **given: Any) -> int:
    """Run what is missing of a study, and report the whole."""
    if cluster is not None:
        from orchestrator.commands.common.remote_run import run_remotely

        return run_remotely(cluster, study, workdir=workdir, as_json=as_json, **given)
    from rich.console import Console

    from orchestrator.executors.base import ExecutorSettings
    from orchestrator.jobs.stopping import Stop
    from orchestrator.report.writers.terminal import (
        print_lines,
        result_lines,
        resume_command,
        sync_command,
    )
    from orchestrator.run import check_rows, check_startable, run_study
    from orchestrator.storage.binding import bind_storage
    from orchestrator.storage.remote import checked_uri
    from orchestrator.tracking.projection import MlflowProjection
    from orchestrator.tracking.records import StoreRecord
    from orchestrator.tracking.tracker import Tracker

    options = _RunOptions(**{name: given.pop(name) for name in _RunOptions.__annotations__})
    _check_inline(options.executor, address=options.address, max_concurrent=options.max_concurrent)
    asked = {name: given.pop(name) for name in _OF_COST}
    request = cost_request(
        **asked,
        executor=options.executor,
        max_concurrent=options.max_concurrent,
        address=options.address,
    )
    plan = _startable_plan(study, workdir, options, given)
    limits = options.limits(plan)
    check_startable(plan, workdir, limits, options.address)
    tracker = Tracker(MlflowProjection(workdir, options.tracking_uri))
    shown = StoreRecord(workdir, plan.study.name, options.tracking_uri)
    if not shown.is_current():
        tracker.check()
    if options.storage is not None:
        checked_uri(options.storage)
    _single_threaded_waits()
    # The stream itself: sys.stdout is not Ray's to print to while it runs.
    console = Console(file=sys.stderr if as_json else sys.stdout)
    trimmed = _print_plan(plan, workdir, console, request, always=any(asked.values()))
    require_room(plan, workdir, request)
    check_rows(plan if trimmed is None else trimmed.plan, workdir, console)
    remote = bind_storage(workdir, options.storage)  # the first write
    stop = Stop()
    settings = ExecutorSettings(
        workdir=workdir,
        stop=stop,
        remote=remote,
        address=options.address,
        max_concurrent=options.max_concurrent,
        early_stopping=plan.study.early_stopping,
    )
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: make_executor(options.executor, settings),
        tracker=tracker,
        shown=shown,
        console=console,
        trimmed=trimmed,
        limits=limits,
        stop=stop,
    )
    command = resume_command(click.get_current_context().find_root().obj)
    again = sync_command(plan.study.name, workdir, options.tracking_uri)
    print_lines(console, result_lines(outcome, workdir, tracker.address, command, again))
    if as_json:
        print_json(_outcome_json(outcome, command, again, tracker.address))
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

    def limits(self, plan: Plan) -> Limits | None:
        """Return the limits of the run: the study's, overridden by the command's."""
        return _limits(plan.study.limits, self.max_hours, self.max_gpu_hours, self.max_failures)


def _startable_plan(
    study: str, workdir: Path, options: _RunOptions, changes: dict[str, Any]
) -> Plan:
    """Return the plan of a study that the executor can run.

    Raises:
        UserError: the executor cannot run it, or the work directory has another study of this name.
    """
    from chip_core.utils.errors import UserError
    from orchestrator.plan.snapshot import require_same_file

    plan = planned(study, workdir=workdir, **changes)
    require_same_file(plan, workdir)
    if options.executor == "inline" and plan.study.early_stopping is not None:
        raise UserError(
            f"{plan.study.source}: early_stopping: compares trainings under way, and the inline "
            "executor has one at a time: use --executor ray, or leave the block out"
        )
    return plan


def _print_plan(
    plan: Plan, workdir: Path, console: Console, request: CostRequest, *, always: bool
) -> TrimmedPlan | None:
    """Print what will run, and what it costs if that was requested or has a budget.

    Returns:
        what of the plan is run, where a budget bounds it.
    """
    from orchestrator.report.writers.plan import cache_lines, plan_lines

    for line in (*plan_lines(plan, workdir), *cache_lines(plan, workdir)):
        console.print(line)
    if plan.study.budget is None and not always:
        return None
    from orchestrator.cost.render import cost_lines

    found = study_cost(plan, workdir, request, console.print)
    for line in cost_lines(found):
        console.print(line)
    return found.trimmed


def _outcome_json(
    outcome: RunOutcome, command: str, again: str, tracking: str | None
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
        "untracked": untracked_to_json(outcome.waiting, again),
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
    """Show what would run, what is done, which cells are one trial, and what it will cost."""
    from rich.console import Console

    from orchestrator.cost.render import cost_lines, cost_to_json
    from orchestrator.plan.snapshot import require_same_file
    from orchestrator.report.writers.plan import (
        cache_lines,
        plan_lines,
        plan_to_json,
        readiness_lines,
        trial_table,
    )

    _check_inline(executor, max_concurrent=max_concurrent)
    asked = {name: changes.pop(name) for name in _OF_COST}
    request = cost_request(**asked, executor=executor, max_concurrent=max_concurrent, looks=True)
    made = planned(study, workdir=workdir, **changes)
    require_same_file(made, workdir)
    found = study_cost(made, workdir, request, Console(stderr=True).print)
    if as_json:
        print_json({**plan_to_json(made, workdir), "cost": cost_to_json(found)})
        return
    console = Console()
    said = (
        *plan_lines(made, workdir),
        *cache_lines(made, workdir),
        *readiness_lines(made, workdir),
        *cost_lines(found),
    )
    for line in said:
        console.print(line)
    console.print(trial_table(made, workdir))


@click.command(epilog="Example: chip-ablate status encoder")
@study_options
def status(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Show how far a study is: each trial's state, attempts and figures."""
    from rich.console import Console

    from orchestrator.report.writers.plan import plan_to_json, status_lines, trial_table

    made = planned(study, workdir=workdir, **changes)
    if as_json:
        print_json(plan_to_json(made, workdir))
        return
    console = Console()
    for line in status_lines(made, workdir):
        console.print(line)
    console.print(trial_table(made, workdir))


@click.command(epilog="Example: chip-ablate report encoder")
@study_options
def report(study: str, workdir: Path, as_json: bool, **changes: Any) -> None:
    """Write a study's report (HTML, Markdown, LaTeX, CSV, figures), and print the table."""
    from rich.console import Console

    from chip_core.utils.errors import UserError
    from orchestrator.plan.snapshot import require_same_file
    from orchestrator.report.cached import rewrite_report
    from orchestrator.report.writers.files import PAGE_FILE, report_folder
    from orchestrator.report.writers.terminal import print_lines, report_lines
    from orchestrator.state.integrity import kept_report_notice, ledger_of, lost_figures

    made = planned(study, workdir=workdir, **changes)
    require_same_file(made, workdir)
    ledger = ledger_of(made, workdir)
    folder = report_folder(workdir, made.study.name)
    lost = lost_figures(made, ledger)
    if lost and (folder / PAGE_FILE).exists():
        raise UserError(kept_report_notice(folder / PAGE_FILE, made, workdir, lost))
    _require_results(made, ledger)
    found = rewrite_report(made, ledger, workdir, folder)
    if as_json:
        print_json({**found.results.data, "report": [str(path) for path in found.files]})
        return
    print_lines(Console(), report_lines(found.results, found.files))


def _check_inline(executor: str, **of_ray: Any) -> None:
    """Refuse options that have no effect without Ray."""
    for name, value in of_ray.items():
        if executor == "inline" and value is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')} does not go with --executor inline: it has one trial "
                "at a time, in this process"
            )


def _require_results(made: Plan, ledger: Ledger) -> None:
    from chip_core.utils.errors import UserError

    if not any(ledger[trial.fingerprint].evaluations for trial in made.trials):
        raise UserError(
            f"study {made.study.name} has no figures in {ledger.workdir}: run it first, "
            "or name its --workdir"
        )


def _limits(
    written: Limits | None,
    max_hours: float | None,
    max_gpu_hours: float | None,
    max_failures: int | None,
) -> Limits | None:
    """Return the study file's limits, overridden by the command line's."""
    from orchestrator.study.limits import Limits

    given = {
        "max_hours": max_hours,
        "max_gpu_hours": max_gpu_hours,
        "max_failures": max_failures,
    }
    known = {} if written is None else written.limits
    known |= {name: value for name, value in given.items() if value is not None}
    return Limits.model_validate(known) if known else None


def _single_threaded_waits() -> None:
    """Let waiting OpenMP threads sleep: spinning ones make a small model's steps slow."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
