"""The MLflow tracker: a study's runs for people to look at.

Experiment = study; a run for the study, under it one for each arm and for the untrained model,
under an arm one for each seed. The truth is in the ledger and the attempts' folders: whatever of it
is shown again is there once, so that a store that was away is brought up to date from them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from orchestrator.plan import BASE, Plan, Trial
from orchestrator.storage.place import artifacts_of
from orchestrator.tracking.base import ArmView, Status, TrialView, Waiting
from orchestrator.tracking.mlflow_files import Curve, stage
from orchestrator.tracking.mlflow_runs import StudyRuns
from orchestrator.tracking.mlflow_store import MlflowStore, Run, finite
from orchestrator.version import CodeVersion, code_version

_REASON, _REUSED, _CUT = "chip.reason", "chip.reused_from", "chip.cut"
_HOW = "chip.scored"  # protocol, scorer, judge, n and missing of a benchmark's figures
_TABLES = "mlflow.loggedArtifacts"  # where MLflow's pages look for tables
_COMPARED = 50  # arms that one address names
#: Metrics of an arm that do not come from its trials' scores: they stay when its scores change.
ATTACHED = ("human/", "representation/", "representation-alone/")
#: Where `chip-ablate ui` shows a work directory's runs, if not told otherwise.
UI = "http://127.0.0.1:5000"


def tracking_uri(workdir: Path, given: str | None) -> str:
    """Return where runs are kept: as given, as MLFLOW_TRACKING_URI says, or in the work directory.

    A database in the work directory needs no server.
    """
    return given or os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(workdir)


def _default_uri(workdir: Path) -> str:
    return f"sqlite:///{workdir.resolve()}/mlflow.db"


class MlflowTracker:
    """Holds a study's runs in MLflow. Every (arm, seed) has one active run.

    All of it may raise a `UserError`: the store cannot be used. What was asked for can be asked
    for again; after a `StoreAway` with a `refresh` before it.
    """

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        address = tracking_uri(workdir, uri)
        own = address == _default_uri(workdir)
        # A database without a server would put artifacts under the current folder.
        self._store = MlflowStore(address, artifacts_of(workdir) if own else None)
        self._workdir = workdir if own else None
        self._runs: StudyRuns | None = None
        self._running: dict[str, tuple[Trial, Path]] = {}  # by fingerprint
        self._curves: dict[tuple[str, Path], Curve] = {}  # by run and folder

    @property
    def address(self) -> str:
        """The tracking URI, without a password."""
        return self._store.address

    @property
    def answers(self) -> int:
        """How often the store did what was asked: it grows while there is progress."""
        return self._store.answers

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Take up what the store has, make what it lacks."""
        if self._workdir is not None:
            self._workdir.mkdir(parents=True, exist_ok=True)
        self._store.open(plan.study.name)
        runs = StudyRuns(self._store, plan, began)
        runs.load()
        self._runs = runs
        for view in done:
            run = runs.trial(view.trial)
            if run is None or not _is_shown(run, view):
                self._show(view)
            elif view.status != "FINISHED":  # its driver may have died before the last points
                self._send_curves(run, view)
        here = [view for view in done if view.reused_from is None and view.code is not None]
        if here:
            last = max(here, key=lambda view: view.ended or 0.0)
            self._store.describe(runs.study, _code_tags(last.code))

    def refresh(self) -> None:
        """Look up what the store has: what it did without answering is not done twice."""
        if self._runs is not None:
            self._runs.load()
            self._curves.clear()

    def start(self, trial: Trial, folders: Sequence[Path], began: float | None = None) -> None:
        """Show a trial as running."""
        run = self._opened.trial_or_new(trial, began)
        code = _code_tags(code_version())
        self._store.describe(run, {**code, _REASON: None, _REUSED: None, _CUT: None})
        self._store.describe(self._opened.study, code)
        for shown in (run, self._opened.parent(trial), self._opened.study):
            self._store.set_status(shown, "RUNNING")
        self._running[trial.fingerprint] = (trial, folders[-1])
        for folder in folders:
            self._send_curve(run, folder)

    def follow(self) -> None:
        """Send what is new in the curves of running trials."""
        for trial, folder in self._running.values():
            self._send_curve(self._opened.trial_or_new(trial), folder)

    def end(self, view: TrialView) -> None:
        """Show a trial as ended."""
        self._running.pop(view.trial.fingerprint, None)
        self._show(view)

    def replay(self, arms: Sequence[ArmView], ended: float | None) -> None:
        """Show what arms came to at the end of an earlier run, where that is not there yet."""
        since = int((ended or 0.0) * 1000)

        def missed(run: Run) -> bool:
            return all(
                stamp < since for name, stamp in run.stamps.items() if not name.startswith(ATTACHED)
            )

        self._aggregate([view for view in arms if missed(self._opened.arm(view.arm))], ended)

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """End everything that runs; show the arms' aggregates and the report."""
        self._aggregate(arms, ended)
        runs = self._opened
        for run in runs.running("trial", "search", BASE):
            self._store.set_status(run, "KILLED", ended)
        for view in arms:
            self._store.set_status(runs.arm(view.arm), view.status, ended)
        for run in runs.running("arm"):
            self._store.set_status(run, status, ended)
        if report is not None and report.is_dir():
            self._store.upload(runs.study, report, "report")
        self._store.set_status(runs.study, status, ended)

    def waiting(self) -> Waiting | None:
        """Return None: what cannot be shown is raised."""
        return None

    def compare_address(self) -> str | None:
        """Return MLflow's compare page of the arms; None where there is one arm only."""
        arms = self._opened.arms[:_COMPARED]
        if len(arms) < 2:
            return None
        server = self._store.pages or UI
        ids = quote(json.dumps([run.id for run in arms], separators=(",", ":")), safe=",")
        experiment = quote(json.dumps([self._store.experiment]))
        return f"{server}/#/compare-runs?runs={ids}&experiments={experiment}"

    @property
    def _opened(self) -> StudyRuns:
        assert self._runs is not None, "open() comes first"
        return self._runs

    def _aggregate(self, arms: Sequence[ArmView], ended: float | None) -> None:
        runs = self._opened
        for view in arms:
            run = runs.arm(view.arm)
            figures = finite(view.figures)
            own = {name for name in run.metrics if not name.startswith(ATTACHED)}
            if not own <= figures.keys():
                run = runs.replace(view.arm)  # a metric cannot be taken back
            self._store.log_figures(run, figures, ended)
            self._store.describe(run, view.tags)

    def _show(self, view: TrialView) -> None:
        """Show an ended trial; its status comes last, so that a run that has it is whole."""
        run = self._opened.trial_or_new(view.trial, view.began)
        self._store.set_status(run, "RUNNING")
        self._store.log_figures(run, _figures(view), view.ended)
        self._send_curves(run, view)
        with tempfile.TemporaryDirectory(prefix="chip-ablate-") as staged:
            tables = stage(view.folders, Path(staged))
            if any(Path(staged).iterdir()):
                self._store.upload(run, Path(staged))
        self._store.describe(run, {**_tags(view), _TABLES: _table_tag(tables)})
        self._store.set_status(run, view.status, view.ended)

    def _send_curves(self, run: Run, view: TrialView) -> None:
        if view.reused_from is None:  # else they are where it was executed
            for folder in view.folders:
                self._send_curve(run, folder)

    def _send_curve(self, run: Run, folder: Path) -> None:
        self._curves.setdefault((run.id, folder), Curve(folder)).send(self._store, run)


def _figures(view: TrialView) -> dict[str, float]:
    timing = {f"timing/{phase}": value for phase, value in view.seconds.items()}
    data = {f"data/{name}": float(count) for name, count in view.data.items()}
    own = {} if view.reused_from is not None else {**timing, **data}
    return finite({**view.metrics, **own})


def _tags(view: TrialView) -> dict[str, str | None]:
    engine = {f"engine.{setting}": value for setting, value in view.engine.items()}
    scored = {
        f"{_HOW}.{re.sub(r'[^A-Za-z0-9_./ -]', '.', key)}": json.dumps(how, sort_keys=True)
        for key, how in view.how.items()
    }
    code = _code_tags(view.code) if view.reused_from is None else {}
    how = {_REASON: view.reason, _REUSED: view.reused_from, _CUT: view.cut}
    return {**how, **engine, **scored, **code}


def _table_tag(tables: Sequence[str]) -> str | None:
    return json.dumps([{"path": path, "type": "table"} for path in tables]) if tables else None


def _is_shown(run: Run, view: TrialView) -> bool:
    return (
        run.status == view.status
        and _figures(view).items() <= run.metrics.items()
        and all(run.tags.get(name) == value for name, value in _tags(view).items())
    )


def _code_tags(code: CodeVersion | None) -> dict[str, str | None]:
    """Return the tags that say which code executed; None: there is nothing to be said."""
    if code is None:
        return {}
    return {
        "chip.version": code.version,
        "mlflow.source.git.commit": code.commit,
        "chip.uncommitted": "true" if code.uncommitted else None,
    }
