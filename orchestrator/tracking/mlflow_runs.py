"""Which run stands for what: one run for the study, for each arm, each (arm, seed) and the base.

Where arms choose for themselves, each trial of their searches has a run too, of kind `search`.
A run has a slot, told by its tags `chip.kind`, `chip.arm` and `chip.seed`, and holds the results
of the fingerprints in `chip.fingerprints`. It goes on as long as those are among what the plan
wants. Otherwise its results are no longer the study's: it stays, as `chip.kind: superseded …`
beside the arms, and another run takes its slot. It comes back when the plan wants it again.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from chip_core.files import parse_json
from orchestrator.plan import BASE, Arm, Plan, Trial
from orchestrator.search import Search, SearchTrial, searches_of
from orchestrator.study import level_text
from orchestrator.tracking.mlflow_store import NAME, MlflowStore, Run
from orchestrator.tracking.names import TAG, spelled

Slot = tuple[str, str, str]  # kind, arm, seed; of a search its number, in the seed's place

STUDY: Slot = ("study", "", "")
KIND, ARM, SEED, FINGERPRINT = "chip.kind", "chip.arm", "chip.seed", "chip.fingerprint"
HOLDS = "chip.fingerprints"
SEARCH, CHOSEN = "chip.search", "chip.chosen"  # a search's number in its arm, and whether it won
SUPERSEDED_BY = "chip.superseded_by"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
_SUPERSEDED = "superseded "
_LONGEST_KEY = 250
_SEEDS_HELD = 100


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run as the plan wants it."""

    slot: Slot
    parent: Slot | None
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    holds: Mapping[str, str] = field(default_factory=dict)  # what is shown -> its fingerprint
    params: Mapping[str, str] = field(default_factory=dict)

    def takes(self, run: Run) -> bool:
        """Return whether all that a run holds is wanted."""
        try:
            held = parse_json(run.tags.get(HOLDS, "{}"))
            return bool(held.items() <= self.holds.items())
        except (ValueError, TypeError, AttributeError):
            return False  # the store says what was never written: the run is nobody's


class StudyRuns:
    """The runs of a plan in its experiment."""

    def __init__(self, store: MlflowStore, plan: Plan, began: float | None = None) -> None:
        """Nothing is looked up yet.

        Args:
            store: the study's experiment.
            plan: what is wanted.
            began: when the study was first run, in seconds since 1970; now if not said.
        """
        self._store = store
        self._began = began
        self._study = plan.study.name
        self._wanted = {wanted.slot: wanted for wanted in _wanted(plan)}
        searches = searches_of(plan)
        self._slots = {
            _place(plan.base): _trial_slot(plan.base, ""),
            **{
                _place(trial): _trial_slot(trial, arm_key(search.arm))
                for search in searches
                for trial in search.trials
            },
            **{
                _place(trial): _trial_slot(trial, arm_key(arm))
                for arm in plan.arms
                for trial in arm.trials
            },
        }
        self._current: dict[Slot, Run] = {}

    def load(self) -> None:
        """Take up what is there, make the runs of study and arms, supersede the rest."""
        found: dict[Slot, list[Run]] = defaultdict(list)
        self._current = {}
        for run in self._store.runs():
            if KIND in run.tags:
                found[_slot(run)].append(run)
        for slot, wanted in self._wanted.items():
            candidates = sorted(found.pop(slot, []), key=_precedence)
            fitting = next((run for run in candidates if wanted.takes(run)), None)
            if fitting is not None:
                self._take_up(fitting, wanted)
            elif slot[0] in ("study", "arm"):
                self._create(wanted)
            for other in candidates:
                if other is not fitting:
                    self._supersede(other, wanted.tags.get(FINGERPRINT))
        for run in (run for runs in found.values() for run in runs):
            self._supersede(run, None)

    @property
    def study(self) -> Run:
        """The study's run."""
        return self._current[STUDY]

    @property
    def arms(self) -> list[Run]:
        """The arms' runs, in the plan's order."""
        return [self._current[slot] for slot in self._wanted if slot[0] == "arm"]

    def arm(self, arm: Arm) -> Run:
        """Return an arm's run."""
        return self._current[_arm_slot(arm)]

    def parent(self, trial: Trial) -> Run:
        """Return the run that a trial's lies under."""
        parent = self._wanted[self._slots[_place(trial)]].parent
        assert parent is not None, f"{trial.name} lies under no run"
        return self._current[parent]

    def trial(self, trial: Trial) -> Run | None:
        """Return a trial's run, where there is one."""
        return self._current.get(self._slots[_place(trial)])

    def trial_or_new(self, trial: Trial, began: float | None = None) -> Run:
        """Return a trial's run; make it where there is none, of a trial that began then."""
        wanted = self._wanted[self._slots[_place(trial)]]
        run = self.trial(trial) or self._create(wanted, began)
        self._store.describe(run, params=wanted.params)
        return run

    def running(self, *kinds: str) -> list[Run]:
        """Return the runs of these kinds that are RUNNING."""
        return [
            run
            for (kind, _, _), run in self._current.items()
            if kind in kinds and run.status == "RUNNING"
        ]

    def replace(self, arm: Arm) -> Run:
        """Put a new run in place of an arm's; its trials' runs move under it."""
        slot = _arm_slot(arm)
        old, new = self._current[slot], self._create(self._wanted[slot])
        for below, wanted in self._wanted.items():
            if wanted.parent == slot and below in self._current:
                self._store.describe(self._current[below], {PARENT: new.id})
        self._supersede(old, self._wanted[slot].tags.get(FINGERPRINT))
        return new

    def _tags(self, wanted: Wanted) -> dict[str, str]:
        kind, arm, seed = wanted.slot
        tags = {KIND: kind, "chip.study": self._study, NAME: wanted.name, **wanted.tags}
        if arm:
            tags[ARM] = arm
        if seed:
            tags[SEARCH if kind == "search" else SEED] = seed
        if wanted.holds:
            tags[HOLDS] = json.dumps(dict(wanted.holds))
        if wanted.parent is not None:
            tags[PARENT] = self._current[wanted.parent].id
        return tags

    def _create(self, wanted: Wanted, began: float | None = None) -> Run:
        began = self._began if wanted.slot[0] in ("study", "arm") else began
        run = self._store.create(self._tags(wanted), began)
        self._current[wanted.slot] = run
        if wanted.slot[0] == "arm":
            self._store.describe(run, params=wanted.params)
        return run

    def _take_up(self, run: Run, wanted: Wanted) -> None:
        self._store.describe(run, {**self._tags(wanted), SUPERSEDED_BY: None}, wanted.params)
        self._current[wanted.slot] = run

    def _supersede(self, run: Run, fingerprint: str | None) -> None:
        kind = run.tags[KIND]
        if not kind.startswith(_SUPERSEDED):
            tags = {
                KIND: _SUPERSEDED + kind,
                SUPERSEDED_BY: fingerprint or "none",
                NAME: f"{run.tags.get(NAME, kind)} (superseded)",
                PARENT: self.study.id,
            }
            self._store.describe(run, tags)
        if run.status == "RUNNING":
            self._store.set_status(run, "KILLED")


def arm_key(arm: Arm) -> str:
    """Return what an arm is known by: its cells, whatever their order in the file."""
    cells = sorted(
        ",".join(f"{factor}={level}" for factor, level in sorted(cell.items()))
        for cell in arm.cells
    )
    key = "|".join(cells)
    if len(key) <= _LONGEST_KEY:
        return spelled(key, TAG)  # it is found again by its tag
    mark = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return spelled(f"{key[:_LONGEST_KEY]}… {mark}", TAG)


def held_by(arm: Arm) -> dict[str, str]:
    """Return what an arm's figures are of: what is shown -> its fingerprint."""
    # A tag has 8000 characters; a recipe that changes, changes every seed.
    known = [trial for trial in arm.trials if trial.held is None][:_SEEDS_HELD]
    seeds = {f"seed {trial.seed}": trial.fingerprint for trial in known}
    return _short({**seeds, **arm.trials[0].evaluations})


def _wanted(plan: Plan) -> Iterator[Wanted]:
    """Yield the runs of a plan, each after the one it lies under."""
    question = plan.study.question
    yield Wanted(
        slot=STUDY,
        parent=None,
        name=plan.study.name,
        tags={NOTE: question} if question else {},
    )
    yield _wanted_trial(plan.base, "", STUDY)
    searches = {search.arm.name: search for search in searches_of(plan)}
    for arm in plan.arms:
        known = [trial for trial in arm.trials if trial.held is None]
        yield Wanted(
            slot=_arm_slot(arm),
            parent=STUDY,
            name=arm.name,
            tags={FINGERPRINT: known[0].fingerprint} if known else {},
            holds=held_by(arm),
            params={**arm.params, **arm.tuned},
        )
        if arm.name in searches:
            yield from _wanted_search(searches[arm.name])
        for trial in known:
            yield _wanted_trial(trial, arm_key(arm), _arm_slot(arm), arm.tuned)


def _wanted_search(search: Search) -> Iterator[Wanted]:
    """Yield the runs of an arm's search; its winner is the first draw of equal ones."""
    for trial in search.trials:
        wanted = _wanted_trial(trial, arm_key(search.arm), _arm_slot(search.arm), trial.text)
        chosen = search.chosen is not None and search.chosen.fingerprint == trial.fingerprint
        tags = {**wanted.tags, SEED: str(trial.seed), CHOSEN: level_text(chosen)}
        yield replace(wanted, tags=tags)


def _wanted_trial(
    trial: Trial, arm: str, parent: Slot, tuned: Mapping[str, str] | None = None
) -> Wanted:
    return Wanted(
        slot=_trial_slot(trial, arm),
        parent=parent,
        name=trial.name,
        tags={FINGERPRINT: trial.fingerprint},
        holds=_short({"model": trial.fingerprint, **trial.evaluations}),
        params={}
        if trial.untrained
        else {**trial.params, **(tuned or {}), "seed": str(trial.seed)},
    )


def _short(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return what is held, short enough for a tag; of too much, that it is all of it."""
    short = {key: value[:12] for key, value in fingerprints.items()}
    text = json.dumps(short)
    if len(text) <= TAG.longest:
        return short
    return {"all": hashlib.sha256(text.encode()).hexdigest()[:12]}


def _place(trial: Trial) -> tuple[str, str]:
    return trial.arm, trial.fingerprint


def _arm_slot(arm: Arm) -> Slot:
    return ("arm", arm_key(arm), "")


def _trial_slot(trial: Trial, arm: str) -> Slot:
    if isinstance(trial, SearchTrial):
        return ("search", arm, str(trial.number))
    return (BASE, "", "") if trial.untrained else ("trial", arm, str(trial.seed))


def _slot(run: Run) -> Slot:
    tags = run.tags
    kind = tags[KIND].removeprefix(_SUPERSEDED)
    return kind, tags.get(ARM, ""), tags.get(SEARCH if kind == "search" else SEED, "")


def _precedence(run: Run) -> tuple[bool, bool, int, str]:
    """Of several runs in one slot: the one that counts first."""
    superseded = run.tags[KIND].startswith(_SUPERSEDED)
    return superseded, run.status != "FINISHED", run.started, run.id
