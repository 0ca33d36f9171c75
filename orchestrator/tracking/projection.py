"""Project the ledger to MLflow: update the runs of a study to match it.

The ledger and the attempts' folders are authoritative. Showing them again changes nothing, so a
store that was unavailable can be updated later.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestrator.plan.plan import BASE_ARM, Plan
from orchestrator.tracking.address import StoreRefused, StoreUnavailable, is_server, server_address
from orchestrator.tracking.artifacts import read_curve, stage_artifacts
from orchestrator.tracking.client import NAME, MlflowStore, Point, Run, encode_metrics
from orchestrator.tracking.names import TAG, encode_name
from orchestrator.tracking.runs import (
    FINGERPRINT,
    KIND,
    PARENT,
    STUDY,
    SUPERSEDED,
    RunSpec,
    Slot,
    arm_slot,
    run_specs,
    slot_of,
)
from orchestrator.tracking.views import (
    ArmView,
    FinalSnapshot,
    PendingRuns,
    StudyView,
    TrackingState,
    TrialKey,
    TrialView,
)
from orchestrator.utils.version import CodeVersion

#: Prefix of a training's checkpoints among its run's metrics, by step.
CHECKPOINT = "checkpoint/"
#: Prefixes of an arm's metrics that are not from its trials' scores and stay when these change.
ATTACHED = ("human/", "representation/", "representation-alone/")
#: Default address of `chip-ablate ui`.
UI = "http://127.0.0.1:5000"
_SUPERSEDED_BY = "chip.superseded_by"
_SCORED = "chip.scored"  # protocol, scorer, judge, n and missing of a benchmark's figures
_TABLES = "mlflow.loggedArtifacts"  # where MLflow's pages look for tables
_MAX_COMPARED = 50  # arms in one address
_LOG = logging.getLogger(__name__)


class MlflowProjection:
    """Updates the runs of a study in MLflow to match its view.

    Every (arm, seed) has one active run, whatever happened before, and showing the same twice has
    no effect. Runs that an earlier driver left RUNNING are continued or ended.
    """

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        self.store = MlflowStore(workdir, uri)
        self._plan: Plan | None = None  # whose runs were matched; None: match again
        self._specs: dict[Slot, RunSpec] = {}
        self._runs: dict[Slot, Run] = {}
        self._trial_specs: dict[TrialKey, RunSpec] = {}
        self._began: float | None = None  # when the study did
        self._shown: dict[TrialKey, TrialView] = {}
        self._curve_ends: defaultdict[tuple[str, Path], int] = defaultdict(int)  # run, folder
        self._failures: dict[str, str] = {}  # trials that could not be shown, and why

    def reconcile(self, study: StudyView) -> None:
        """Update MLflow to match a study's view, whatever it shows now.

        Only changes since the last call are processed. After an error, all runs are matched again,
        so that requests that succeeded without an answer are found and not repeated.

        Raises:
            UserError: the store cannot be used.
        """
        matched, self._plan = self._plan, None
        if matched is not study.plan:
            self._open_study(study)
        for key, view in study.trials.items():
            if self._shown.get(key) is not view:
                self._show_trial(view)
                self._shown[key] = view
            elif view.status == "RUNNING":
                self._log_curves(self._trial_run(view), view)
        for end in study.ends[:-1]:
            self._replay_end(end)
        for end in study.ends[-1:]:
            self._close_study(end, study.report)
        self._plan = study.plan

    def state(
        self, study: StudyView | None = None, error: Exception | None = None
    ) -> TrackingState:
        """Return what could not be shown, what MLflow rejects, and where it compares the arms.

        Args:
            study: a view that is not reconciled; None: the last one was.
            error: why it is not; None: the store does not answer.
        """
        failures, shown = dict(self._failures), dict(self._shown)  # another thread may change them
        silent = f"the MLflow store {self.store.address} does not answer"
        reason = str(error or next(iter(failures.values()), silent))
        if study is not None:
            ended = ((k, view) for k, view in study.trials.items() if view.status != "RUNNING")
            failures |= {view.trial.name: "" for k, view in ended if shown.get(k) is not view}
        pending = None
        if failures or study is not None:
            trials = tuple(failures)
            pending = PendingRuns(reason=reason, trials=trials, study=study is not None)
        compare = self._compare_address() if pending is None else None
        return TrackingState(pending=pending, refused=self.store.refused, compare=compare)

    def _compare_address(self) -> str | None:
        """Return the address of MLflow's comparison of the arms; None with a single arm."""
        arms = [self._runs[slot].id for slot in self._specs if slot[0] == "arm"][:_MAX_COMPARED]
        if len(arms) < 2:
            return None
        ids = quote(json.dumps(arms, separators=(",", ":")), safe=",")
        experiment = quote(json.dumps([self.store.experiment]))
        pages = server_address(self.store.uri) if is_server(self.store.uri) else UI
        return f"{pages}/#/compare-runs?runs={ids}&experiments={experiment}"

    def _open_study(self, study: StudyView) -> None:
        self.store.open(study.plan.study.name)
        self._specs = {spec.slot: spec for spec in run_specs(study.plan)}
        self._trial_specs = {
            (spec.trial.arm, spec.trial.fingerprint): spec
            for spec in self._specs.values()
            if spec.trial is not None
        }
        self._began = study.began
        self._match_runs()
        self._shown.clear()
        executed = [view for view in study.trials.values() if view.reused_from is None]
        if coded := [view for view in executed if view.code is not None]:
            last = max(coded, key=lambda view: view.ended or 0.0)
            self.store.describe_run(self._runs[STUDY], _code_tags(last.code))

    def _match_runs(self) -> None:
        """Match the store's runs with the plan's, and create those of the study and the arms."""
        runs: dict[Slot, list[Run]] = defaultdict(list)
        for run in self.store.runs():
            if KIND in run.tags:
                runs[slot_of(run)].append(run)
        self._runs = {}
        self._curve_ends.clear()
        for slot, spec in self._specs.items():
            candidates = sorted(runs.pop(slot, []), key=_precedence)
            match = next(filter(spec.matches, candidates), None)
            if match is not None:
                self._runs[slot] = match
                tags = {**self._spec_tags(spec), _SUPERSEDED_BY: None}
                self.store.describe_run(match, tags, spec.params)
            elif slot[0] in ("study", "arm"):
                self._create_run(spec)
            for run in candidates:
                if run is not match:
                    self._supersede_run(run, spec.fingerprint)
        for run in chain.from_iterable(runs.values()):
            self._supersede_run(run, None)

    def _show_trial(self, view: TrialView) -> None:
        """Update a trial's run. What the store rejects twice is left out."""
        name = view.trial.name
        try:
            try:
                self._update_trial(view)
            except StoreRefused:  # its run may be gone, so another is created
                self._match_runs()
                self._update_trial(view)
        except StoreUnavailable:
            raise
        except Exception as error:  # other trials are still shown
            if str(error) not in self._failures.values():
                _LOG.warning("%s; the study continues, and the rest of it is shown", error)
            self._failures[name] = str(error)
        else:
            self._failures.pop(name, None)

    def _update_trial(self, view: TrialView) -> None:
        """Update a trial's run. The status is set last and marks the run as complete."""
        run, tags, figures = self._trial_run(view), _trial_tags(view), _trial_figures(view)
        if run.status == view.status != "RUNNING" and _is_up_to_date(run, tags, figures):
            if view.status != "FINISHED":  # its driver may have died before the last points
                self._log_curves(run, view)
            return
        study, parent = self._runs[STUDY], self._trial_specs[view.key].parent or STUDY
        for opened in (run, self._runs[parent], study):
            self.store.set_status(opened, "RUNNING")
        if view.status == "RUNNING":
            self.store.describe_run(run, tags)
            self.store.describe_run(study, _code_tags(view.code))
            self._log_curves(run, view)
            return
        points = [Point(figures=figures, time=view.ended)]
        for step, selected in sorted(view.checkpoints.items()):
            named = {CHECKPOINT + name: value for name, value in selected.items()}
            points.append(Point(figures=named, time=view.ended, step=step))
        self.store.log_points(run, points)
        self._log_curves(run, view)
        with tempfile.TemporaryDirectory(prefix="chip-ablate-") as folder:
            tables = stage_artifacts(view.folders, Path(folder))
            if any(Path(folder).iterdir()):
                self.store.upload_folder(run, Path(folder))
        self.store.describe_run(run, {**tags, _TABLES: _table_tag(tables)})
        self.store.set_status(run, view.status, view.ended)

    def _replay_end(self, end: FinalSnapshot) -> None:
        """Show the arms' aggregates at the end of an earlier run, if they are missing."""
        since = int((end.ended or 0.0) * 1000)
        for view in end.arms:
            latest = _aggregate_metrics(self._runs[arm_slot(view.arm)])
            if all(metric.timestamp < since for metric in latest.values()):
                self._show_arm(view, end.ended)

    def _close_study(self, end: FinalSnapshot, report: Path | None) -> None:
        """End all running runs, and show the arms' aggregates and the report."""
        statuses = {arm_slot(view.arm): view.status for view in end.arms}
        for view in end.arms:
            self._show_arm(view, end.ended)
        for slot, run in self._runs.items():
            if run.status == "RUNNING" and slot[0] in ("trial", "search", BASE_ARM):
                self.store.set_status(run, "KILLED", end.ended)
            elif slot in statuses or (run.status == "RUNNING" and slot[0] == "arm"):
                self.store.set_status(run, statuses.get(slot, end.status), end.ended)
        study = self._runs[STUDY]
        if report is not None and report.is_dir():
            self.store.upload_folder(study, report, "report")
        self.store.set_status(study, end.status, end.ended)

    def _show_arm(self, view: ArmView, ended: float | None) -> None:
        """Update an arm's run with its aggregates."""
        slot = arm_slot(view.arm)
        run, spec = self._runs[slot], self._specs[slot]
        if not _aggregate_metrics(run).keys() <= encode_metrics(view.figures).keys():
            former, run = run, self._create_run(spec)  # a metric cannot be deleted
            for child, child_spec in self._specs.items():
                if child_spec.parent == slot and child in self._runs:
                    self.store.describe_run(self._runs[child], {PARENT: run.id})
            self._supersede_run(former, spec.fingerprint)
        self.store.log_points(run, [Point(figures=view.figures, time=ended)])
        self.store.describe_run(run, view.tags)

    def _trial_run(self, view: TrialView) -> Run:
        spec = self._trial_specs[view.key]
        return self._runs.get(spec.slot) or self._create_run(spec, view.began)

    def _create_run(self, spec: RunSpec, began: float | None = None) -> Run:
        """Create a run of the plan, which began at `began` or with the study."""
        run = self.store.create_run(
            self._spec_tags(spec), self._began if spec.trial is None else began
        )
        self._runs[spec.slot] = run
        self.store.describe_run(run, params=spec.params)
        return run

    def _spec_tags(self, spec: RunSpec) -> dict[str, str]:
        return spec.tags("" if spec.parent is None else self._runs[spec.parent].id)

    def _supersede_run(self, run: Run, successor: str | None) -> None:
        """Mark a run as no longer the study's, and name its successor's fingerprint."""
        kind = run.tags[KIND]
        if not kind.startswith(SUPERSEDED):
            tags = {
                KIND: SUPERSEDED + kind,
                _SUPERSEDED_BY: successor or "none",
                NAME: f"{run.tags.get(NAME, kind)} (superseded)",
                PARENT: self._runs[STUDY].id,
            }
            self.store.describe_run(run, tags)
        if run.status == "RUNNING":
            self.store.set_status(run, "KILLED")

    def _log_curves(self, run: Run, view: TrialView) -> None:
        """Log the points that were added to a trial's curves."""
        if view.reused_from is not None:  # the study that executed it has them
            return
        for folder in view.folders:
            points, end = read_curve(folder, self._curve_ends[run.id, folder])
            self.store.log_points(run, points)
            self._curve_ends[run.id, folder] = end


def delete_runs(
    workdir: Path, uri: str | None, study: str, fingerprints: Collection[str] | None
) -> int:
    """Delete the runs of removed trials of a study; without fingerprints, all and the experiment.

    MLflow's pages can restore them until `mlflow gc`.

    Returns:
        the number of deleted runs.

    Raises:
        UserError: the store cannot be used. No run is deleted then.
    """
    store = MlflowStore(workdir, uri)
    if not store.open(study, create=False):  # no run was ever shown there
        return 0
    runs = store.runs()
    if fingerprints is not None:
        trials = (run for run in runs if slot_of(run)[0] in ("trial", BASE_ARM))
        runs = [run for run in trials if run.tags.get(FINGERPRINT) in fingerprints]
    store.delete_runs(runs, experiment=fingerprints is None)
    return len(runs)


def _precedence(run: Run) -> tuple[bool, bool, int, str]:
    """Sort key of several runs in one slot: the first one is used."""
    superseded = run.tags[KIND].startswith(SUPERSEDED)
    return superseded, run.status != "FINISHED", run.started, run.id


def _aggregate_metrics(run: Run) -> dict[str, Any]:
    """Return an arm's latest metrics without attached ones."""
    return {key: last for key, last in run.latest.items() if not key.startswith(ATTACHED)}


def _trial_figures(view: TrialView) -> dict[str, float]:
    if view.status == "RUNNING":
        return {}
    if view.reused_from is not None:
        return dict(view.metrics)
    timing = {f"timing/{phase}": value for phase, value in view.seconds.items()}
    data = {f"data/{name}": float(count) for name, count in view.data.items()}
    return {**view.metrics, **timing, **data}


def _trial_tags(view: TrialView) -> dict[str, str | None]:
    code = _code_tags(view.code) if view.reused_from is None else {}
    outcome = {
        "chip.reason": view.reason,
        "chip.reused_from": view.reused_from,
        "chip.cut": view.cut,
    }
    if view.status == "RUNNING":
        return {**dict.fromkeys(outcome), **code}
    engine = {f"engine.{setting}": value for setting, value in view.engine.items()}
    # Until 2026-11 a colon became a dot there, so that `a:b.c` and `a.b:c` had the same name.
    former = {f"{_SCORED}.{key.replace(':', '.')}": None for key in view.metadata if ":" in key}
    scored = {
        f"{_SCORED}.{key}": json.dumps(metadata, sort_keys=True)
        for key, metadata in view.metadata.items()
    }
    return {**outcome, **engine, **former, **scored, **code}


def _code_tags(code: CodeVersion | None) -> dict[str, str | None]:
    """Return tags with the version of the code; empty without one."""
    if code is None:
        return {}
    return {
        "chip.version": code.version,
        "mlflow.source.git.commit": code.commit,
        "chip.uncommitted": "true" if code.uncommitted else None,
    }


def _table_tag(paths: Sequence[str]) -> str | None:
    tables = [{"path": path, "type": "table"} for path in paths]
    while len(json.dumps(tables)) > TAG.max_length:  # MLflow parses it, so it must not be cut
        tables.pop()
    return json.dumps(tables) if tables else None


def _is_up_to_date(run: Run, tags: Mapping[str, str | None], figures: Mapping[str, float]) -> bool:
    """Return whether a run has all of these."""
    return encode_metrics(figures).items() <= run.metrics.items() and all(
        run.tags.get(encode_name(name)) == (None if value is None else encode_name(value, TAG))
        for name, value in tags.items()
    )
