"""Estimate time and price from rates and work."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from chip_core.config.trial import TrialConfig
from orchestrator.cost.kinds import row_kind, sampling_kind, score_kind, start_kind
from orchestrator.cost.rates import NOTHING, Quantity, Rates, Seconds
from orchestrator.cost.workload import (
    BenchmarkQuestions,
    CacheBuildWork,
    TrialWork,
    Workload,
    prompts_of,
    steps_of,
)

#: The kind of what Ray takes, whatever it runs.
OF_RAY = "ray"

WORDS: dict[Quantity, str] = {
    "imports": "the imports",
    "model": "loading the model",
    "row": "checking a row",
    "setup": "setting up a training",
    "step": "a step",
    "answer": "an answer",
    "score": "scoring an answer",
    "sample": "a sample of a reference pass",
}
COUNTED: dict[Quantity, str] = {
    "row": "rows",
    "step": "steps",
    "answer": "questions",
    "score": "questions",
    "sample": "samples",
}

#: inline: one trial after another in one process, which imports once. ray: each in its own.
Way = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What the user pays, in a currency that is not named here."""

    gpu_hour: float | None = None
    cpu_hour: float | None = None


@dataclass(kw_only=True)
class Cost:
    """The cost of some work. Unknown parts are named and in no sum."""

    start: Seconds = NOTHING  # of Ray, of processes and models
    train: Seconds = NOTHING
    answer: Seconds = NOTHING
    score: Seconds = NOTHING  # without a GPU
    passes: Seconds = NOTHING
    gpu: float = 0.0  # seconds that GPUs are held
    unknown: set[str] = field(default_factory=set)  # "training: seconds of a step"
    sources: set[str] = field(default_factory=set)  # sources of the rates

    @property
    def whole(self) -> Seconds:
        """The sum of all parts."""
        return self.start + self.train + self.answer + self.score + self.passes

    def add(self, other: Cost) -> None:
        """Add another cost."""
        self.start += other.start
        self.train += other.train
        self.answer += other.answer
        self.score += other.score
        self.passes += other.passes
        self.gpu += other.gpu
        self.unknown |= other.unknown
        self.sources |= other.sources

    def price(self, prices: Prices) -> float | None:
        """Return the price; None if no price is given, or not everything is known."""
        if self.unknown or (prices.gpu_hour is None and prices.cpu_hour is None):
            return None
        if self.gpu and prices.gpu_hour is None:
            return None
        return (
            self.gpu * (prices.gpu_hour or 0.0) + self.whole.cpu * (prices.cpu_hour or 0.0)
        ) / 3600


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated cost of what is left of a study."""

    trials: dict[str, Cost]  # by fingerprint
    passes: dict[str, Cost]  # by the names of passes that are made together
    total: Cost
    wall: float | None  # seconds from start to end; None where not all is known
    at_once: int | None  # trials that run at a time; None: none can, as far as this machine knows
    ray: bool | None  # whether what Ray takes is counted; None: it is not used


def estimate(work: Workload, rates: Rates, *, at_once: int | None, way: Way = "ray") -> Estimate:
    """Estimate the cost of what is left of a study, and its time from start to end.

    Args:
        work: what is left.
        rates: how long each part takes.
        at_once: how many trials run at a time on Ray; None: not known.
        way: how they are run.
    """
    slots = 1 if way == "inline" else at_once
    imports = _Imports(way)
    session, dispatch = (
        None if way == "inline" else rates.of(name, OF_RAY) for name in ("session", "dispatch")
    )
    passes: dict[str, Cost] = {}
    shares: list[float] = []  # seconds of each process that makes a part of a pass
    for group in work.passes:
        parts = max(1, min((slots or 1) // len(work.passes), group.parts))
        cost = _of_pass(group, rates, parts, imports)
        if dispatch is not None:
            cost.passes += dispatch[0] * parts
        passes[group.name] = cost
        shares += [cost.whole.wall / parts] * parts
    trials = {each.trial.fingerprint: _of_trial(each, rates, imports) for each in work.trials}
    if dispatch is not None:
        for cost in trials.values():
            cost.start += dispatch[0]
    total = Cost()
    for cost in (*passes.values(), *trials.values()):
        total.add(cost)
    if session is not None and trials:
        total.start += session[0]
        total.sources.add(session[1])
    wall = None
    if not total.unknown and slots is not None:
        costs = [(trials[each.trial.fingerprint], each.processes) for each in work.trials]
        lasting = [(cost.whole - cost.score).wall / processes for cost, processes in costs]
        scoring = [cost.score.wall for cost, _ in costs]
        wall = _makespan(shares, slots) + _makespan(lasting, slots)
        # On Ray, scoring overlaps with the next trainings: only the last one's adds time.
        wall += sum(scoring) if way == "inline" else max(scoring, default=0.0)
        wall += 0.0 if session is None or not trials else session[0].wall
    return Estimate(
        trials=trials,
        passes=passes,
        total=total,
        wall=wall,
        at_once=slots,
        ray=None if way == "inline" else session is not None and dispatch is not None,
    )


class _Imports:
    """Counts imports, which a process makes once."""

    def __init__(self, way: Way) -> None:
        self._way, self._done = way, False

    def next(self) -> int:
        """Return how often imports are counted now, 0 or 1."""
        times = 0 if self._way == "inline" and self._done else 1
        self._done = True
        return times


class _Sum:
    """Multiplies rates and amounts, and records unknown ones."""

    def __init__(self, rates: Rates, cost: Cost) -> None:
        self._rates, self._cost = rates, cost

    def of(self, quantity: Quantity, kind: str, times: int | None, what: str) -> Seconds:
        """Return a rate times an amount; zero if either is unknown, which is recorded."""
        if times == 0:
            return NOTHING
        found = self._rates.of(quantity, kind)
        if found is None:
            self._cost.unknown.add(f"seconds of {WORDS[quantity]} ({what})")
            return NOTHING
        if times is None:
            self._cost.unknown.add(f"how many: {COUNTED[quantity]} ({what})")
            return NOTHING
        rate, source = found
        self._cost.sources.add(source)
        return rate * times


def _of_trial(work: TrialWork, rates: Rates, imports: _Imports) -> Cost:
    cost = Cost()
    add = _Sum(rates, cost)
    model = work.config.model.path
    if not work.answered:  # scoring needs no model
        cost.start = add.of("imports", work.start, imports.next(), model)
        cost.start += add.of("model", work.start, 1, model)
    if work.training is not None:
        rows = rows_of(work.config, work.rows, rates)
        steps = steps_of(work.config, rows)
        rounds = work.config.pairs.rounds
        if rounds:  # its pairs are made in it
            cost.train += _of_sampling(work, rows, add)
        else:
            cost.start += add.of("row", work.row, rows, work.config.data.source)
        cost.train += add.of("setup", work.training, rounds or 1, work.trial.arm)
        cost.train += add.of("step", work.training, steps, work.trial.arm)
    for key, asked in work.asked.items():
        questions = _questions(asked, rates)
        if not work.answered:
            cost.answer += add.of("answer", asked.kind, questions, key)
        cost.score += add.of("score", score_kind(asked.settings), questions, key)
    cost.start *= work.processes
    cost.train *= work.processes  # a step is all workers' together; answers are shared out
    cost.gpu = (cost.whole - cost.score).wall * work.config.engine.gpus_per_worker
    return cost


def _of_sampling(work: TrialWork, rows: int | None, add: _Sum) -> Seconds:
    """Return the time of the answers that a trial samples and ranks in all its rounds."""
    settings, prompts = work.config.pairs, prompts_of(work.config, rows)
    answers = None if prompts is None else settings.rounds * prompts * settings.answers
    return add.of("answer", sampling_kind(work.config), answers, f"pairs of {work.trial.arm}")


def _of_pass(work: CacheBuildWork, rates: Rates, parts: int, imports: _Imports) -> Cost:
    """Return the cost of passes. Each part loads the model and checks the data."""
    cost = Cost()
    add = _Sum(rates, cost)
    start, model = start_kind(work.config), work.config.model.path
    once = add.of("imports", start, imports.next(), model) + add.of("model", start, 1, model)
    samples = rows_of(work.config, work.samples, rates)
    once += add.of("row", row_kind(work.config), samples, work.config.data.source)
    cost.passes = once * parts + add.of("sample", work.kind, samples, work.name)
    cost.gpu = cost.whole.wall * work.config.engine.gpus_per_worker
    return cost


def _questions(asked: BenchmarkQuestions, rates: Rates) -> int | None:
    """Return the number of answers, from the plan's count of questions or from a source."""
    if asked.questions is not None:
        return asked.times * asked.questions
    found = rates.size("questions", asked.kind)
    return None if found is None else asked.times * found[0]


def rows_of(config: TrialConfig, counted: int | None, rates: Rates) -> int | None:
    """Return the number of rows of a trial's data, from the plan's count or from a source."""
    if counted is not None:
        return counted
    found = rates.size("rows", row_kind(config))
    limit = config.data.limit
    return None if found is None else found[0] if limit is None else min(found[0], limit)


def _makespan(seconds: Sequence[float], slots: int) -> float:
    """Return when the last job ends, if each starts in order as soon as a slot is free.

    A run with several slots starts a seed's longest trial first, and may end sooner.
    """
    free = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)
