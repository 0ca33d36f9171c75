"""Identify the runs that a study has in MLflow.

A study is an experiment. It has a run for the study, under it one for each arm and the untrained
model, and under each arm one per seed. With `tune:`, each search trial also has a run, of kind
`search`.

A run has a slot, given by its tags `chip.kind`, `chip.arm` and `chip.seed`, and holds the results
of the fingerprints in `chip.fingerprints`. It is used as long as the plan has these fingerprints.
Otherwise its results are no longer the study's: it is kept as `chip.kind: superseded …` next to
the arms, and another run takes its slot. If the plan has them again, the run is used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from chip_core.utils.files import parse_json
from orchestrator.plan.plan import BASE_ARM, PLACEBO_ARM, Arm, Plan, Trial
from orchestrator.state.search import plan_searches
from orchestrator.study.model import format_level
from orchestrator.tracking.client import NAME, Run
from orchestrator.tracking.names import TAG, encode_name

Slot = tuple[str, str, str]  # kind, arm, seed; for a search, its number instead of the seed

STUDY: Slot = ("study", "", "")
KIND, ARM, SEED, FINGERPRINT = "chip.kind", "chip.arm", "chip.seed", "chip.fingerprint"
PARENT = "mlflow.parentRunId"
SUPERSEDED = "superseded "  # prefix of the kind of a run whose results are no longer the study's
_SEARCH = "chip.search"  # a search trial's number in its arm
_FINGERPRINTS = "chip.fingerprints"
_MAX_ARM_KEY, _MAX_SEEDS = 250, 100  # characters and seeds in an arm's tags


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run that the plan has."""

    study: str
    slot: Slot
    parent: Slot | None
    name: str
    fingerprint: str | None = None  # of its training
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of all that it shows
    params: Mapping[str, str] = field(default_factory=dict)
    extra_tags: Mapping[str, str] = field(default_factory=dict)
    trial: Trial | None = None

    def matches(self, run: Run) -> bool:
        """Return whether the plan has everything that a run of its slot shows."""
        try:
            shown = parse_json(run.tags.get(_FINGERPRINTS, "{}"))
            return bool(shown.items() <= self.fingerprints.items())
        except (ValueError, TypeError, AttributeError):
            return False  # not a tag that was written here

    def tags(self, parent_id: str) -> dict[str, str]:
        """Return its tags under a parent's run."""
        kind, arm, number = self.slot
        tags = {
            KIND: kind,
            "chip.study": self.study,
            NAME: self.name,
            ARM: arm,
            _SEARCH if kind == "search" else SEED: number,
            FINGERPRINT: self.fingerprint,
            _FINGERPRINTS: json.dumps(self.fingerprints) if self.fingerprints else None,
            PARENT: parent_id,
            **self.extra_tags,
        }
        return {key: value for key, value in tags.items() if value}


def run_specs(plan: Plan) -> Iterator[RunSpec]:
    """Yield the runs of a plan, each after its parent."""
    spec = partial(RunSpec, study=plan.study.name)

    def trial_spec(
        trial: Trial, slot: Slot, parent: Slot, selected: Mapping[str, str], **tags: str
    ) -> RunSpec:
        params = {**trial.params, **selected, "seed": str(trial.seed)}
        return spec(
            slot=slot,
            parent=parent,
            name=trial.name,
            fingerprint=trial.fingerprint,
            fingerprints=_shorten({"model": trial.fingerprint, **trial.evaluations}),
            params={} if trial.untrained else params,
            extra_tags=tags,
            trial=trial,
        )

    question = {"mlflow.note.content": plan.study.question}
    yield spec(slot=STUDY, parent=None, name=plan.study.name, extra_tags=question)
    yield trial_spec(plan.base, (BASE_ARM, "", ""), STUDY, {})
    searches = {search.arm.name: search for search in plan_searches(plan)}
    for arm in plan.arms:
        slot, key = arm_slot(arm), arm_key(arm)
        trials = _known_trials(arm)
        yield spec(
            slot=slot,
            parent=STUDY,
            name=arm.name,
            fingerprint=trials[0].fingerprint if trials else None,
            fingerprints=arm_fingerprints(arm),
            params={**arm.params, **arm.tuned},
        )
        if (search := searches.get(arm.name)) is not None:
            best = None if search.chosen is None else search.chosen.fingerprint
            for draw in search.trials:
                tags = {SEED: str(draw.seed), "chip.chosen": format_level(draw.fingerprint == best)}
                yield trial_spec(
                    draw, ("search", key, str(draw.number)), slot, draw.value_texts, **tags
                )
        for trial in trials:
            yield trial_spec(trial, ("trial", key, str(trial.seed)), slot, arm.tuned)


def arm_key(arm: Arm) -> str:
    """Return the key of an arm: its cells, independent of their order in the file."""
    cells = sorted(
        ",".join(f"{factor}={level}" for factor, level in sorted(cell.items()))
        for cell in arm.cells
    )
    key = PLACEBO_ARM if arm.placebo else "|".join(cells)
    if len(key) > _MAX_ARM_KEY:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        key = f"{key[:_MAX_ARM_KEY]}… {digest}"
    return encode_name(key, TAG)  # it is looked up by its tag


def arm_slot(arm: Arm) -> Slot:
    """Return the slot of an arm's run."""
    return "arm", arm_key(arm), ""


def slot_of(run: Run) -> Slot:
    """Return the slot that a run has, or had before it was superseded."""
    kind = run.tags.get(KIND, "").removeprefix(SUPERSEDED)
    number = run.tags.get(_SEARCH if kind == "search" else SEED, "")
    return kind, run.tags.get(ARM, ""), number


def arm_fingerprints(arm: Arm) -> dict[str, str]:
    """Return what an arm's figures are made from: name -> fingerprint."""
    # A tag has 8000 characters; a recipe that changes, changes every seed.
    trials = _known_trials(arm)[:_MAX_SEEDS]
    seeds = {f"seed {trial.seed}": trial.fingerprint for trial in trials}
    return _shorten({**seeds, **arm.trials[0].evaluations})


def _known_trials(arm: Arm) -> list[Trial]:
    """Return an arm's trials that do not wait for a search."""
    return [trial for trial in arm.trials if trial.blocked is None]


def _shorten(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Shorten fingerprints to fit a tag; if there are too many, return one hash of all."""
    short = {key: value[:12] for key, value in fingerprints.items()}
    text = json.dumps(short)
    if len(text) <= TAG.max_length:
        return short
    return {"all": hashlib.sha256(text.encode()).hexdigest()[:12]}
