"""Show a study in MLflow again, from its own records."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.registry import join_names
from orchestrator.plan.plan import Plan, Trial, make_plan
from orchestrator.plan.snapshot import PlanSnapshot, iter_plan_snapshots, read_identities
from orchestrator.report.outcomes import load_scores
from orchestrator.report.results import build_arm_views
from orchestrator.report.sections.provenance import last_end_time
from orchestrator.report.summary import build_summary
from orchestrator.report.writers.files import report_folder
from orchestrator.runner.jobs import trial_view
from orchestrator.state.integrity import inspect_plan
from orchestrator.state.ledger import Ledger, TrialRecord, lock_study
from orchestrator.study.load import load_study
from orchestrator.tracking.projection import MlflowProjection
from orchestrator.tracking.records import load_snapshots
from orchestrator.tracking.views import FinalSnapshot, Status, StudyView


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """The result of a sync of one study."""

    study: str
    trials: int  # number of trials, with the untrained model
    address: str
    refused: Mapping[str, str] = field(default_factory=dict)  # what MLflow rejects, and why


def find_snapshots(workdir: Path, names: Sequence[str]) -> list[PlanSnapshot]:
    """Return the studies of a work directory with the given names or files, or all of them.

    Raises:
        UserError: a named study was not run there, or none was.
    """
    snapshots = list(iter_plan_snapshots(workdir))
    study_names = join_names(plan.study for plan in snapshots)
    if not snapshots:
        raise UserError(
            f"no study was run in {workdir}: use --workdir to name the work directory of one"
        )
    selected = []
    for name in names:
        by_name = [plan for plan in snapshots if plan.study == name]
        by_file = [
            plan for plan in snapshots if os.path.realpath(plan.path) == os.path.realpath(name)
        ]
        if not by_name and not by_file:
            raise UserError(f"{name}: was not run in {workdir}: choose one of {study_names}")
        selected += by_name or by_file
    return selected if names else snapshots


def sync_study(snapshot: PlanSnapshot, workdir: Path, projection: MlflowProjection) -> SyncResult:
    """Show a study from its ledger, its attempts and its report folder.

    Args:
        snapshot: snapshot of the study's last run.
        workdir: the work directory.
        projection: the projection to a store.

    Raises:
        UserError: its file is gone or invalid, the study is being run, or the store
            cannot be used.
    """
    if not snapshot.path.is_file():
        raise UserError(
            f"study {snapshot.study}: its file {snapshot.path} is gone: restore it, because it "
            "says which trials belong to which arm"
        )
    study = load_study(snapshot.path, snapshot.changes)
    if study.name != snapshot.study:
        raise UserError(
            f"study {snapshot.study}: its file {snapshot.path} now defines study {study.name}: "
            "run that one, or change its name back"
        )
    with lock_study(workdir, snapshot.study):
        ledger = Ledger(workdir, writable=False)
        known_identities = read_identities(workdir, snapshot.study)
        plan = inspect_plan(
            make_plan(study, data_paths=snapshot.data_paths, known_identities=known_identities),
            ledger,
            workdir,
        )
        started_trials = [trial for trial in plan.all_trials if ledger[trial.fingerprint].history]
        views = [
            trial_view(
                trial,
                ledger,
                workdir,
                snapshot.study,
                _trial_status(ledger[trial.fingerprint], trial),
            )
            for trial in started_trials
        ]
        projection.reconcile(
            StudyView(
                plan=plan,
                began=snapshot.began,
                trials={view.key: view for view in views},
                ends=tuple(_final_snapshots(snapshot, plan, ledger, workdir)),
                report=report_folder(workdir, snapshot.study),
            )
        )
    state = projection.state()
    refused = dict(state.refused)
    if state.pending is not None:
        refused |= {f"trial {name}": state.pending.reason for name in state.pending.trials}
    return SyncResult(
        study=snapshot.study, trials=len(views), address=projection.store.address, refused=refused
    )


def _trial_status(record: TrialRecord, trial: Trial) -> Status:
    if record.is_done(trial):
        return "FINISHED"
    return "FAILED" if record.history[max(record.history)].outcome == "failed" else "KILLED"


def _final_snapshots(
    snapshot: PlanSnapshot, plan: Plan, ledger: Ledger, workdir: Path
) -> list[FinalSnapshot]:
    """Return how the study's runs ended; an interrupted last one is derived from its trials."""
    snapshots = load_snapshots(workdir, plan)
    if snapshots and snapshots[-1].time >= snapshot.time:
        return snapshots
    summary = build_summary(plan, ledger, load_scores(plan, ledger, workdir))
    states = {state for row in summary.rows for state in row.states.values()}
    status: Status = "FAILED" if "failed" in states else "FINISHED"
    return [
        *snapshots,
        FinalSnapshot(
            time=time.time(),
            status="KILLED" if states & {"missing", "killed"} else status,
            ended=last_end_time(plan, ledger),
            arms=tuple(build_arm_views(summary)),
        ),
    ]
