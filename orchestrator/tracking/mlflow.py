"""The MLflow tracker: a study's runs for people to look at.

Experiment = study; a run for the study, under it one for each arm and for the untrained model,
under an arm one for each seed. The truth is in the ledger and the attempts' folders: a store that
is away for a while is brought up to date from them, and the study goes on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from chip_core.errors import UserError
from orchestrator.plan import BASE, Plan, Trial
from orchestrator.tracking.base import ArmView, Status, TrialView
from orchestrator.tracking.mlflow_files import Curve, stage
from orchestrator.tracking.mlflow_runs import StudyRuns
from orchestrator.tracking.mlflow_store import MlflowStore, Run, finite
from orchestrator.version import code_version

_LOG = logging.getLogger(__name__)
_REASON, _REUSED = "chip.reason", "chip.reused_from"
_HOW = "chip.scored"  # protocol, scorer, judge, n and missing of a benchmark's figures
_TABLES = "mlflow.loggedArtifacts"  # where MLflow's pages look for tables
_RETRY_SECONDS = 60.0
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
    """Holds a study's runs in MLflow. Every (arm, seed) has one active run."""

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        address = tracking_uri(workdir, uri)
        own = address == _default_uri(workdir)
        # A database without a server would put artifacts under the current folder.
        self._store = MlflowStore(address, workdir.resolve() / "artifacts" if own else None)
        self._workdir = workdir if own else None
        self._runs: StudyRuns | None = None
        self._running: dict[str, tuple[Trial, Path]] = {}  # by fingerprint
        self._shown: set[str] = set()  # those of them that the store shows as running
        self._ended: list[TrialView] = []  # not yet in the store
        self._curves: dict[tuple[str, Path], Curve] = {}  # by run and folder
        self._away_until = 0.0

    @property
    def address(self) -> str:
        """The tracking URI, without a password."""
        return self._store.address

    def open(self, plan: Plan, done: Sequence[TrialView]) -> None:
        """Take up what the store has, make what it lacks.

        Raises:
            UserError: the store cannot be used.
        """
        if self._workdir is not None:
            self._workdir.mkdir(parents=True, exist_ok=True)
        self._store.open(plan.study.name)
        self._runs = StudyRuns(self._store, plan)
        self._runs.load()
        for view in done:
            if not _is_shown(self._runs.trial(view.trial), view):
                self._show(view)

    def start(self, trial: Trial, folder: Path) -> None:
        """Show a trial as running."""
        self._running[trial.fingerprint] = (trial, folder)
        self._shown.discard(trial.fingerprint)
        self._catch_up()

    def follow(self) -> None:
        """Send what is new in the curves of running trials."""
        self._catch_up()

    def end(self, view: TrialView) -> None:
        """Show a trial as ended."""
        self._running.pop(view.trial.fingerprint, None)
        self._ended.append(view)
        self._catch_up()

    def close(self, arms: Sequence[ArmView], status: Status, report: Path | None) -> None:
        """End everything that runs; show the arms' aggregates and the report.

        Raises:
            UserError: the store cannot be used; running the study again brings it up to date.
        """
        self._send()
        runs = self._opened
        for view in arms:
            run = runs.arm(view.arm)
            figures = finite(view.figures)
            own = {name for name in run.metrics if not name.startswith(ATTACHED)}
            if not own <= figures.keys():
                run = runs.replace(view.arm)  # a metric cannot be taken back
            self._store.log_figures(run, figures)
            self._store.describe(run, view.tags)
        for run in runs.running("trial", "search", BASE):
            self._store.set_status(run, "KILLED")
        for view in arms:
            self._store.set_status(runs.arm(view.arm), view.status)
        for run in runs.running("arm"):
            self._store.set_status(run, status)
        if report is not None and report.is_dir():
            self._store.upload(runs.study, report, "report")
        self._store.set_status(runs.study, status)

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

    def _catch_up(self) -> None:
        """Bring the store up to date; where it is away, try again later."""
        if time.monotonic() < self._away_until:
            return
        try:
            self._send()
        except (UserError, OSError) as error:
            self._away_until = time.monotonic() + _RETRY_SECONDS
            _LOG.warning("%s; the study goes on, its runs are brought up to date later", error)

    def _send(self) -> None:
        while self._ended:
            view = self._ended[0]
            if view.reused_from is None:
                self._store.describe(self._opened.trial_or_new(view.trial), _code_tags())
            self._show(view)
            self._ended.pop(0)
        for mark, (trial, folder) in self._running.items():
            run = self._opened.trial_or_new(trial)
            if mark not in self._shown:
                self._store.describe(run, {**_code_tags(), _REASON: None, _REUSED: None})
                self._store.describe(self._opened.study, _code_tags())
                for shown in (run, self._opened.parent(trial), self._opened.study):
                    self._store.set_status(shown, "RUNNING")
                self._shown.add(mark)
            self._send_curve(run, folder)

    def _show(self, view: TrialView) -> None:
        """Show an ended trial; its status comes last, so that a run that has it is whole."""
        run = self._opened.trial_or_new(view.trial)
        self._store.set_status(run, "RUNNING")
        self._store.log_figures(run, _figures(view))
        if view.reused_from is None:  # else its curves are where it was executed
            for folder in view.folders:
                self._send_curve(run, folder)
        with tempfile.TemporaryDirectory(prefix="chip-ablate-") as staged:
            tables = stage(view.folders, Path(staged))
            if any(Path(staged).iterdir()):
                self._store.upload(run, Path(staged))
        self._store.describe(run, {**_tags(view), _TABLES: _table_tag(tables)})
        self._store.set_status(run, view.status)

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
    return {_REASON: view.reason, _REUSED: view.reused_from, **engine, **scored}


def _table_tag(tables: Sequence[str]) -> str | None:
    return json.dumps([{"path": path, "type": "table"} for path in tables]) if tables else None


def _is_shown(run: Run | None, view: TrialView) -> bool:
    return (
        run is not None
        and run.status == view.status
        and _figures(view).items() <= run.metrics.items()
        and all(run.tags.get(name) == value for name, value in _tags(view).items())
    )


def _code_tags() -> dict[str, str | None]:
    """Return the tags that say which code is executed; None: there is nothing to be said."""
    code = code_version()
    return {
        "chip.version": code.version,
        "mlflow.source.git.commit": code.commit,
        "chip.uncommitted": "true" if code.uncommitted else None,
    }
