"""The MLflow tracker: a study's runs for people to look at.

Experiment = study; a run for the study, under it one for each arm and for the untrained model,
under an arm one for each seed. The truth is in the ledger and the attempts' folders: whatever of it
is shown again is there once, so that a store that was away is brought up to date from them.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from chip_core.errors import UserError
from orchestrator.plan import BASE, Plan, Trial
from orchestrator.storage.place import artifacts_of
from orchestrator.tracking.base import ArmView, Status, TrialView, Waiting
from orchestrator.tracking.mlflow_files import Curve, stage
from orchestrator.tracking.mlflow_runs import StudyRuns
from orchestrator.tracking.mlflow_store import MlflowStore, Run, as_metrics
from orchestrator.tracking.names import TAG, spelled
from orchestrator.tracking.trouble import StoreAway, is_new
from orchestrator.version import CodeVersion, code_version

_REASON, _REUSED, _CUT = "chip.reason", "chip.reused_from", "chip.cut"
_HOW = "chip.scored"  # protocol, scorer, judge, n and missing of a benchmark's figures
_TABLES = "mlflow.loggedArtifacts"  # where MLflow's pages look for tables
_COMPARED = 50  # arms that one address names
_LOG = logging.getLogger(__name__)
#: Metrics of an arm that do not come from its trials' scores: they stay when its scores change.
ATTACHED = ("human/", "representation/", "representation-alone/")
#: Where `chip-ablate ui` shows a work directory's runs, if not told otherwise.
UI = "http://127.0.0.1:5000"


def tracking_uri(workdir: Path, given: str | None) -> str:
    """Return where runs are kept: as given, as MLFLOW_TRACKING_URI says, or in the work directory.

    A database in the work directory needs no server.
    """
    if given is not None:
        return given
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(workdir)


def own_uri(workdir: Path) -> str:
    """Return the address of the database in a work directory."""
    file = f"{workdir.resolve()}/mlflow.db"
    if not any(sign in file for sign in "%?"):
        return f"sqlite:///{file}"
    # SQLAlchemy reads escapes; MLflow makes a folder by them where no driver is named.
    return f"sqlite+pysqlite:///{quote(file)}"


def check_store(workdir: Path, uri: str | None) -> None:
    """Find out whether a store can be used, before anything is made; one that is away may be.

    Raises:
        UserError: it cannot be used.
    """
    with suppress(StoreAway):
        MlflowTracker(workdir, uri).check()


class MlflowTracker:
    """Holds a study's runs in MLflow. Every (arm, seed) has one active run.

    All of it may raise a `UserError`: the store cannot be used. What was asked for can be asked
    for again; after a `StoreAway` with a `refresh` before it.
    """

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        address = tracking_uri(workdir, uri)
        own = address == own_uri(workdir)
        # A database without a server would put artifacts under the current folder.
        self._store = MlflowStore(address, artifacts_of(workdir) if own else None)
        self._workdir = workdir if own else None
        self._runs: StudyRuns | None = None
        self._running: dict[str, tuple[Trial, Path]] = {}  # by fingerprint
        self._curves: dict[tuple[str, Path], Curve] = {}  # by run and folder
        self._left_out: dict[str, str] = {}  # trials that could not be shown, and why

    @property
    def address(self) -> str:
        """The tracking URI, without a password."""
        return self._store.address

    @property
    def answers(self) -> int:
        """How often the store did what was asked: it grows while there is progress."""
        return self._store.answers

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made.

        Raises:
            UserError: it cannot be used.
        """
        if self._workdir is None or not is_new(self._store.uri):  # else the work directory decides
            self._store.check()

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Take up what the store has, make what it lacks."""
        if self._workdir is not None:
            self._workdir.mkdir(parents=True, exist_ok=True)
        self._store.open(plan.study.name)
        runs = StudyRuns(self._store, plan, began)
        runs.load()
        self._runs = runs
        for view in done:
            try:
                self._show_done(view)
            except StoreAway:
                raise
            except UserError as error:  # the others are shown all the same
                self._left_out[f"trial {view.trial.name}"] = str(error)
                _LOG.warning("MLflow is not shown the trial %s: %s", view.trial.name, error)
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

    def refused(self) -> Mapping[str, str]:
        """Return what the store took in no way, and why."""
        return {**self._store.refused, **self._left_out}

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
            own = {name for name in run.metrics if not name.startswith(ATTACHED)}
            if not own <= as_metrics(view.figures).keys():
                run = runs.replace(view.arm)  # a metric cannot be taken back
            self._store.log_figures(run, view.figures, ended)
            self._store.describe(run, view.tags)

    def _show_done(self, view: TrialView) -> None:
        """Show a trial that ended before, where that is not seen already."""
        run = self._opened.trial(view.trial)
        if run is None or not _is_shown(run, view):
            self._show(view)
        elif view.status != "FINISHED":  # its driver may have died before the last points
            self._send_curves(run, view)

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
    return {**view.metrics, **own}


def _tags(view: TrialView) -> dict[str, str | None]:
    engine = {f"engine.{setting}": value for setting, value in view.engine.items()}
    scored = {f"{_HOW}.{key}": json.dumps(how, sort_keys=True) for key, how in view.how.items()}
    # Until 2026-11 a colon was a dot there, which made `a:b.c` and `a.b:c` one.
    former = {f"{_HOW}.{key.replace(':', '.')}": None for key in view.how if ":" in key}
    code = _code_tags(view.code) if view.reused_from is None else {}
    how = {_REASON: view.reason, _REUSED: view.reused_from, _CUT: view.cut}
    return {**how, **engine, **former, **scored, **code}


def _table_tag(tables: Sequence[str]) -> str | None:
    said = [{"path": path, "type": "table"} for path in tables]
    while len(json.dumps(said)) > TAG.longest:  # MLflow's pages read it: cut short it says nothing
        said.pop()
    return json.dumps(said) if said else None


def _is_shown(run: Run, view: TrialView) -> bool:
    return (
        run.status == view.status
        and as_metrics(_figures(view)).items() <= run.metrics.items()
        and all(
            run.tags.get(spelled(name)) == (None if value is None else spelled(value, TAG))
            for name, value in _tags(view).items()
        )
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
