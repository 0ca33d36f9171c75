"""Project the ledger to MLflow: the runs of a study.

A study is an experiment. It has a run for the study, under it one for each arm and the untrained
model, and under each arm one per seed. With `tune:`, each search trial also has a run, of kind
`search`. The ledger and the attempts' folders are authoritative: showing them again changes
nothing, so that a store that was unavailable can be brought up to date from them.

A run has a slot, given by its tags `chip.kind`, `chip.arm` and `chip.seed`, and holds the results
of the fingerprints in `chip.fingerprints`. It is used as long as the plan has these fingerprints.
Otherwise its results are no longer the study's: it is kept as `chip.kind: superseded …` next to
the arms, and another run takes its slot. If the plan has them again, the run is used again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from chip_core.utils.files import parse_json
from orchestrator.plan.plan import BASE_ARM, PLACEBO_ARM, Arm, Plan, Trial
from orchestrator.state.search import plan_searches
from orchestrator.study.model import format_level
from orchestrator.tracking.address import StoreRefused, StoreUnavailable, is_server
from orchestrator.tracking.artifacts import Curve, stage
from orchestrator.tracking.base import (
    ArmView,
    FinalSnapshot,
    Place,
    StudyView,
    Tracker,
    TrialView,
    Waiting,
)
from orchestrator.tracking.client import NAME, Run, as_metrics, store_of
from orchestrator.tracking.names import TAG, spelled
from orchestrator.utils.version import CodeVersion

Slot = tuple[str, str, str]  # kind, arm, seed; for a search, its number instead of the seed

STUDY: Slot = ("study", "", "")
KIND, ARM, SEED, FINGERPRINT = "chip.kind", "chip.arm", "chip.seed", "chip.fingerprint"
SEARCH = "chip.search"  # a search trial's number in its arm
SUPERSEDED = "superseded "  # prefix of the kind of a run whose results are no longer the study's
_HOLDS, _SUPERSEDED_BY, _PARENT = "chip.fingerprints", "chip.superseded_by", "mlflow.parentRunId"
_SCORED = "chip.scored"  # protocol, scorer, judge, n and missing of a benchmark's figures
_TABLES = "mlflow.loggedArtifacts"  # where MLflow's pages look for tables
_LONGEST_KEY, _SEEDS_HELD = 250, 100
_COMPARED = 50  # largest number of arms in one address
_LOG = logging.getLogger(__name__)
#: Prefixes of an arm's metrics that are not from its trials' scores and stay when these change.
ATTACHED = ("human/", "representation/", "representation-alone/")
#: Default address of `chip-ablate ui`.
UI = "http://127.0.0.1:5000"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run that the plan has."""

    slot: Slot
    parent: Slot | None
    tags: Mapping[str, str]
    holds: Mapping[str, str]  # what is shown -> its fingerprint
    params: Mapping[str, str]
    trial: Trial | None  # whose run it is

    def takes(self, run: Run) -> bool:
        """Return whether the plan has everything that a run holds."""
        try:
            return bool(parse_json(run.tags.get(_HOLDS, "{}")).items() <= self.holds.items())
        except (ValueError, TypeError, AttributeError):
            return False  # not a tag that was written here


class MlflowTracker(Tracker):
    """Brings the runs of a study in MLflow up to date with its view."""

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        self._store = store_of(workdir, uri)
        self.address = self._store.address
        self.brought: dict[Place, TrialView] = {}  # last view shown of each trial
        self._matched: Plan | None = None  # plan whose runs were matched; None: match again
        self._began: float | None = None
        self._wanted: dict[Slot, RunSpec] = {}
        self._slots: dict[Place, Slot] = {}
        self._current: dict[Slot, Run] = {}
        self._curves: dict[tuple[str, Path], Curve] = {}  # by run and folder
        self._left_out: dict[str, str] = {}  # trials that could not be shown, and why

    @property
    def answers(self) -> int:
        """Number of successful requests, which grows while there is progress."""
        return self._store.answers

    def check(self) -> None:
        """Check whether the store can be used, before anything is created.

        Raises:
            UserError: it cannot be used.
        """
        self._store.check()

    def confirm(self) -> None:
        """Nothing: `open` has waited for the store."""

    def bring(self, study: StudyView) -> None:
        """Bring MLflow up to date with a study's view, whatever it has.

        Only changes since the last call are processed. After an error, all runs are matched again,
        so that requests that succeeded without an answer are found and not repeated.

        Raises:
            UserError: the store cannot be used.
        """
        self.study = study
        matched, self._matched = self._matched, None
        if matched is not study.plan:
            self._open(study)
        for place, view in study.trials.items():
            if self.brought.get(place) is not view:
                self._show(view)
                self.brought[place] = view
            elif view.status == "RUNNING":
                self._send_curves(self._run(view), view)
        if study.ends:
            *before, last = study.ends
            for end in before:
                self._replay(end)
            self._close(last, study.report)
        self._matched = study.plan

    def _open(self, study: StudyView) -> None:
        self._store.open(study.plan.study.name)
        self._began = study.began
        self._wanted = {wanted.slot: wanted for wanted in run_specs(study.plan)}
        self._slots = {
            (wanted.trial.arm, wanted.trial.fingerprint): slot
            for slot, wanted in self._wanted.items()
            if wanted.trial is not None
        }
        self._match()
        self.brought.clear()
        here = [view for view in study.trials.values() if view.reused_from is None and view.code]
        if here:
            last = max(here, key=lambda view: view.ended or 0.0)
            self._store.describe(self._current[STUDY], _code_tags(last.code))

    def _match(self) -> None:
        """Match the store's runs with the plan's, and create those of the study and the arms."""
        found: dict[Slot, list[Run]] = defaultdict(list)
        for run in self._store.runs():
            if KIND in run.tags:
                found[slot_of(run)].append(run)
        self._current = {}
        self._curves.clear()
        for slot, wanted in self._wanted.items():
            candidates = sorted(found.pop(slot, []), key=_precedence)
            fitting = next((run for run in candidates if wanted.takes(run)), None)
            if fitting is not None:
                self._current[slot] = fitting
                tags = {**self._tags(wanted), _SUPERSEDED_BY: None}
                self._store.describe(fitting, tags, wanted.params)
            elif slot[0] in ("study", "arm"):
                self._create(wanted)
            for other in candidates:
                if other is not fitting:
                    self._supersede(other, wanted.tags.get(FINGERPRINT))
        for run in (run for runs in found.values() for run in runs):
            self._supersede(run, None)

    def _show(self, view: TrialView) -> None:
        """Bring a trial's run up to date. What the store rejects twice is left out."""
        name = view.trial.name
        try:
            try:
                self._bring_trial(view)
            except StoreRefused:  # its run may be gone, so another is created
                self._match()
                self._bring_trial(view)
        except StoreUnavailable:
            raise
        except Exception as error:  # other trials are still shown
            if str(error) not in self._left_out.values():
                _LOG.warning("%s; the study goes on, and the rest of it is shown", error)
            self._left_out[name] = str(error)
        else:
            self._left_out.pop(name, None)

    def _bring_trial(self, view: TrialView) -> None:
        """Bring a trial's run up to date. The status is set last and marks the run as complete."""
        run, tags, figures = self._run(view), _tags(view), _figures(view)
        if run.status == view.status != "RUNNING" and _has(run, tags, figures):
            if view.status != "FINISHED":  # its driver may have died before the last points
                self._send_curves(run, view)
            return
        parent = self._wanted[self._slots[view.place]].parent or STUDY
        for shown in (run, self._current[parent], self._current[STUDY]):
            self._store.set_status(shown, "RUNNING")
        if view.status == "RUNNING":
            self._store.describe(run, tags)
            self._store.describe(self._current[STUDY], _code_tags(view.code))
            self._send_curves(run, view)
            return
        self._store.log_figures(run, figures, view.ended)
        self._store.log_series(run, view.checkpoints, view.ended)
        self._send_curves(run, view)
        with tempfile.TemporaryDirectory(prefix="chip-ablate-") as staged:
            tables = stage(view.folders, Path(staged))
            if any(Path(staged).iterdir()):
                self._store.upload(run, Path(staged))
        self._store.describe(run, {**tags, _TABLES: _table_tag(tables)})
        self._store.set_status(run, view.status, view.ended)

    def _replay(self, end: FinalSnapshot) -> None:
        """Show the arms' aggregates at the end of an earlier run, if they are missing."""
        since = int((end.ended or 0.0) * 1000)
        for view in end.arms:
            stamps = self._current[arm_slot(view.arm)].stamps
            if all(stamps[name] < since for name in stamps if not name.startswith(ATTACHED)):
                self._aggregate(view, end.ended)

    def _close(self, end: FinalSnapshot, report: Path | None) -> None:
        """End all running runs, and show the arms' aggregates and the report."""
        statuses = {arm_slot(view.arm): view.status for view in end.arms}
        for view in end.arms:
            self._aggregate(view, end.ended)
        for slot, run in self._current.items():
            if run.status == "RUNNING" and slot[0] in ("trial", "search", BASE_ARM):
                self._store.set_status(run, "KILLED", end.ended)
            elif slot in statuses or (run.status == "RUNNING" and slot[0] == "arm"):
                self._store.set_status(run, statuses.get(slot, end.status), end.ended)
        study = self._current[STUDY]
        if report is not None and report.is_dir():
            self._store.upload(study, report, "report")
        self._store.set_status(study, end.status, end.ended)

    def waiting(self) -> Waiting | None:
        """Return the trials that could not be shown. Other errors are raised."""
        if not self._left_out:
            return None
        reason = next(iter(self._left_out.values()))
        return Waiting(reason=reason, trials=tuple(self._left_out), study=False)

    def refused(self) -> Mapping[str, str]:
        """Return what the store rejected, and why."""
        return self._store.refused

    def compare_address(self) -> str | None:
        """Return the address of MLflow's comparison of the arms; None with a single arm."""
        arms = [self._current[slot] for slot in self._wanted if slot[0] == "arm"][:_COMPARED]
        if len(arms) < 2:
            return None
        ids = quote(json.dumps([run.id for run in arms], separators=(",", ":")), safe=",")
        experiment = quote(json.dumps([self._store.experiment]))
        pages = pages_of(self._store.uri)
        return f"{pages}/#/compare-runs?runs={ids}&experiments={experiment}"

    def _run(self, view: TrialView) -> Run:
        slot = self._slots[view.place]
        return self._current.get(slot) or self._create(self._wanted[slot], view.began)

    def _tags(self, wanted: RunSpec) -> dict[str, str]:
        if wanted.parent is None:
            return dict(wanted.tags)
        return {**wanted.tags, _PARENT: self._current[wanted.parent].id}

    def _create(self, wanted: RunSpec, began: float | None = None) -> Run:
        began = began if wanted.trial is not None else self._began
        run = self._current[wanted.slot] = self._store.create(self._tags(wanted), began)
        self._store.describe(run, params=wanted.params)
        return run

    def _supersede(self, run: Run, fingerprint: str | None) -> None:
        kind = run.tags[KIND]
        if not kind.startswith(SUPERSEDED):
            tags = {
                KIND: SUPERSEDED + kind,
                _SUPERSEDED_BY: fingerprint or "none",
                NAME: f"{run.tags.get(NAME, kind)} (superseded)",
                _PARENT: self._current[STUDY].id,
            }
            self._store.describe(run, tags)
        if run.status == "RUNNING":
            self._store.set_status(run, "KILLED")

    def _aggregate(self, view: ArmView, ended: float | None) -> None:
        slot = arm_slot(view.arm)
        run = self._current[slot]
        own = {name for name in run.metrics if not name.startswith(ATTACHED)}
        if not own <= as_metrics(view.figures).keys():  # a metric cannot be deleted: new run
            former, run = run, self._create(self._wanted[slot])
            for below, wanted in self._wanted.items():
                if wanted.parent == slot and below in self._current:
                    self._store.describe(self._current[below], {_PARENT: run.id})
            self._supersede(former, self._wanted[slot].tags.get(FINGERPRINT))
        self._store.log_figures(run, view.figures, ended)
        self._store.describe(run, view.tags)

    def _send_curves(self, run: Run, view: TrialView) -> None:
        if view.reused_from is None:  # else the study that executed it has them
            for folder in view.folders:
                curve = self._curves.setdefault((run.id, folder), Curve(folder))
                curve.send(self._store, run)


def run_specs(plan: Plan) -> Iterator[RunSpec]:
    """Yield the runs of a plan, each after its parent."""

    def run(
        slot: Slot,
        parent: Slot | None,
        name: str,
        tags: Mapping[str, str],
        holds: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        trial: Trial | None = None,
    ) -> RunSpec:
        kind, arm, number = slot
        known = {
            KIND: kind,
            "chip.study": plan.study.name,
            NAME: name,
            ARM: arm,
            SEARCH if kind == "search" else SEED: number,
            _HOLDS: json.dumps(holds) if holds else "",
            **tags,
        }
        return RunSpec(
            slot=slot,
            parent=parent,
            tags={key: value for key, value in known.items() if value},
            holds=holds or {},
            params=params or {},
            trial=trial,
        )

    def of_trial(
        trial: Trial, slot: Slot, parent: Slot, chosen: Mapping[str, str], **tags: str
    ) -> RunSpec:
        params = {**trial.params, **chosen, "seed": str(trial.seed)}
        holds = _short_hashes({"model": trial.fingerprint, **trial.evaluations})
        tags[FINGERPRINT] = trial.fingerprint
        return run(slot, parent, trial.name, tags, holds, {} if trial.untrained else params, trial)

    yield run(STUDY, None, plan.study.name, {"mlflow.note.content": plan.study.question})
    yield of_trial(plan.base, (BASE_ARM, "", ""), STUDY, {})
    searches = {search.arm.name: search for search in plan_searches(plan)}
    for arm in plan.arms:
        slot, key = arm_slot(arm), arm_key(arm)
        known = [trial for trial in arm.trials if trial.blocked is None]
        mark = {FINGERPRINT: known[0].fingerprint} if known else {}
        yield run(slot, STUDY, arm.name, mark, held_by(arm), {**arm.params, **arm.tuned})
        search = searches.get(arm.name)
        chosen = None if search is None or search.chosen is None else search.chosen.fingerprint
        for draw in () if search is None else search.trials:
            tags = {SEED: str(draw.seed), "chip.chosen": format_level(draw.fingerprint == chosen)}
            yield of_trial(draw, ("search", key, str(draw.number)), slot, draw.value_texts, **tags)
        for trial in known:
            yield of_trial(trial, ("trial", key, str(trial.seed)), slot, arm.tuned)


def arm_key(arm: Arm) -> str:
    """Return the key of an arm: its cells, independent of their order in the file."""
    cells = sorted(
        ",".join(f"{factor}={level}" for factor, level in sorted(cell.items()))
        for cell in arm.cells
    )
    key = PLACEBO_ARM if arm.placebo else "|".join(cells)
    if len(key) <= _LONGEST_KEY:
        return spelled(key, TAG)  # it is looked up by its tag
    mark = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return spelled(f"{key[:_LONGEST_KEY]}… {mark}", TAG)


def arm_slot(arm: Arm) -> Slot:
    """Return the slot of an arm's run."""
    return "arm", arm_key(arm), ""


def slot_of(run: Run) -> Slot:
    """Return the slot that a run has, or had before it was superseded."""
    kind = run.tags.get(KIND, "").removeprefix(SUPERSEDED)
    number = run.tags.get(SEARCH if kind == "search" else SEED, "")
    return kind, run.tags.get(ARM, ""), number


def held_by(arm: Arm) -> dict[str, str]:
    """Return what an arm's figures are made from: name -> fingerprint."""
    # A tag has 8000 characters; a recipe that changes, changes every seed.
    known = [trial for trial in arm.trials if trial.blocked is None][:_SEEDS_HELD]
    seeds = {f"seed {trial.seed}": trial.fingerprint for trial in known}
    return _short_hashes({**seeds, **arm.trials[0].evaluations})


def pages_of(uri: str) -> str:
    """Return the address of a store's pages without user and password; for a database, `UI`."""
    server = urlsplit(uri)
    if not is_server(uri):
        return UI
    return f"{server.scheme}://{server.netloc.rpartition('@')[2]}{server.path}".rstrip("/")


def _short_hashes(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Shorten fingerprints to fit a tag; if there are too many, return one hash of all."""
    short = {key: value[:12] for key, value in fingerprints.items()}
    text = json.dumps(short)
    if len(text) <= TAG.longest:
        return short
    return {"all": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _precedence(run: Run) -> tuple[bool, bool, int, str]:
    """Sort key of several runs in one slot: the first one is used."""
    superseded = run.tags[KIND].startswith(SUPERSEDED)
    return superseded, run.status != "FINISHED", run.started, run.id


def _figures(view: TrialView) -> dict[str, float]:
    if view.status == "RUNNING":
        return {}
    timing = {f"timing/{phase}": value for phase, value in view.seconds.items()}
    data = {f"data/{name}": float(count) for name, count in view.data.items()}
    own = {} if view.reused_from is not None else {**timing, **data}
    return {**view.metrics, **own}


def _tags(view: TrialView) -> dict[str, str | None]:
    code = _code_tags(view.code) if view.reused_from is None else {}
    found = {"reason": view.reason, "reused_from": view.reused_from, "cut": view.cut}
    metadata = {f"chip.{key}": value for key, value in found.items()}
    if view.status == "RUNNING":
        return {**dict.fromkeys(metadata), **code}
    engine = {f"engine.{setting}": value for setting, value in view.engine.items()}
    scored = {
        f"{_SCORED}.{key}": json.dumps(metadata, sort_keys=True)
        for key, metadata in view.metadata.items()
    }
    # Until 2026-11 a colon was a dot there, which made `a:b.c` and `a.b:c` one.
    former = {f"{_SCORED}.{key.replace(':', '.')}": None for key in view.metadata if ":" in key}
    return {**metadata, **engine, **former, **scored, **code}


def _code_tags(code: CodeVersion | None) -> dict[str, str | None]:
    """Return tags with the version of the code; empty without one."""
    if code is None:
        return {}
    return {
        "chip.version": code.version,
        "mlflow.source.git.commit": code.commit,
        "chip.uncommitted": "true" if code.uncommitted else None,
    }


def _table_tag(tables: Sequence[str]) -> str | None:
    said = [{"path": path, "type": "table"} for path in tables]
    while len(json.dumps(said)) > TAG.longest:  # MLflow's pages parse it, so it must not be cut
        said.pop()
    return json.dumps(said) if said else None


def _has(run: Run, tags: Mapping[str, str | None], figures: Mapping[str, float]) -> bool:
    """Return whether a run has all of these."""
    return as_metrics(figures).items() <= run.metrics.items() and all(
        run.tags.get(spelled(name)) == (None if value is None else spelled(value, TAG))
        for name, value in tags.items()
    )
