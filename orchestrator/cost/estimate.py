"""Estimate time and price from rates and work."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from chip_core.config.trial import TrialConfig
from orchestrator.cost.kinds import row_kind, sampling_kind, score_kind, start_kind
from orchestrator.cost.rates import NO_TIME, Quantity, Rates, Seconds
from orchestrator.cost.workload import (
    BenchmarkQuestions,
    CacheBuildWork,
    TrialWork,
    Workload,
    round_prompts,
    training_steps,
)

#: The kind of what Ray takes, whatever it runs.
RAY_KIND = "ray"

QUANTITY_NAMES: dict[Quantity, str] = {
    "imports": "the imports",
    "model": "loading the model",
    "row": "checking a row",
    "setup": "setting up a training",
    "step": "a step",
    "answer": "an answer",
    "score": "scoring an answer",
    "sample": "a sample of a reference pass",
}
UNIT_NAMES: dict[Quantity, str] = {
    "row": "rows",
    "step": "steps",
    "answer": "questions",
    "score": "questions",
    "sample": "samples",
}

#: inline: one trial after another in one process, which imports once. ray: each in its own.
ExecutorKind = Literal["ray", "inline"]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What the user pays, in a currency that is not named here."""

    gpu_hour: float | None = None
    cpu_hour: float | None = None


#: The parts of a cost, in the order of their sum.
COST_PARTS = ("start", "train", "answer", "score", "passes")


@dataclass(kw_only=True)
class Cost:
    """The cost of some work. Unknown parts are named and in no sum."""

    start: Seconds = NO_TIME  # of Ray, of processes and models
    train: Seconds = NO_TIME
    answer: Seconds = NO_TIME
    score: Seconds = NO_TIME  # without a GPU
    passes: Seconds = NO_TIME
    gpu: float = 0.0  # seconds that GPUs are held
    unknown: set[str] = field(default_factory=set)  # "training: seconds of a step"
    sources: set[str] = field(default_factory=set)  # sources of the rates

    @property
    def total_time(self) -> Seconds:
        """The sum of all parts."""
        return sum(self.parts.values(), NO_TIME)

    @property
    def parts(self) -> dict[str, Seconds]:
        """The parts by name."""
        return {name: getattr(self, name) for name in COST_PARTS}

    def add(self, other: Cost) -> None:
        """Add another cost."""
        for name, part in other.parts.items():
            setattr(self, name, getattr(self, name) + part)
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
            self.gpu * (prices.gpu_hour or 0.0) + self.total_time.cpu * (prices.cpu_hour or 0.0)
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
    #: what the study's own server holds from start to end, which is in the total where it is known
    server: Cost | None = None

    @property
    def gpu(self) -> float | None:
        """Seconds that GPUs are held; None where not all is known."""
        if self.total.unknown or (self.server is not None and self.server.unknown):
            return None
        return self.total.gpu

    def price(self, prices: Prices) -> float | None:
        """Return what it costs; None where no price is given, or not all is known."""
        return None if self.gpu is None else self.total.price(prices)


def estimate_workload(
    work: Workload,
    rates: Rates,
    *,
    at_once: int | None,
    executor: ExecutorKind = "ray",
    server_gpus: int = 0,
) -> Estimate:
    """Estimate the cost of what is left of a study, and its time from start to end.

    Args:
        work: what is left.
        rates: how long each part takes.
        at_once: how many trials run at a time on Ray; None: not known.
        executor: how they are run.
        server_gpus: GPUs that the study's own server holds from start to end.
    """
    slots = 1 if executor == "inline" else at_once
    # How often imports count: in one process, only the first time.
    imports = (
        itertools.repeat(1) if executor == "ray" else itertools.chain([1], itertools.repeat(0))
    )
    session, dispatch = (
        None if executor == "inline" else rates.find(quantity, RAY_KIND)
        for quantity in ("session", "dispatch")
    )
    passes: dict[str, Cost] = {}
    shares: list[float] = []  # seconds of each process that makes a part of a pass
    for group in work.passes:
        parts = max(1, min((slots or 1) // len(work.passes), group.parts))
        cost = _pass_cost(group, rates, parts, imports)
        if dispatch is not None:
            cost.passes += dispatch[0] * parts
        passes[group.name] = cost
        shares += [cost.total_time.wall / parts] * parts
    trials = {
        trial_work.trial.fingerprint: _trial_cost(trial_work, rates, imports)
        for trial_work in work.trials
    }
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
        costs = [
            (trials[trial_work.trial.fingerprint], trial_work.processes)
            for trial_work in work.trials
        ]
        durations = [(cost.total_time - cost.score).wall / processes for cost, processes in costs]
        scoring = [cost.score.wall for cost, _ in costs]
        wall = _makespan(shares, slots) + _makespan(durations, slots)
        # On Ray, scoring overlaps with the next trainings: only the last one's adds time.
        wall += sum(scoring) if executor == "inline" else max(scoring, default=0.0)
        wall += 0.0 if session is None or not trials else session[0].wall
    server = None
    if server_gpus and trials:
        server = Cost()
        if wall is None:
            server.unknown.add("how long the study's server runs")
        else:
            server.gpu = server_gpus * wall
            total.add(server)
    return Estimate(
        trials=trials,
        passes=passes,
        total=total,
        wall=wall,
        at_once=slots,
        ray=None if executor == "inline" else session is not None and dispatch is not None,
        server=server,
    )


class _CostAccumulator:
    """Multiplies rates and amounts, and records unknown ones."""

    def __init__(self, rates: Rates, cost: Cost) -> None:
        self._rates, self._cost = rates, cost

    def multiply(self, quantity: Quantity, kind: str, times: int | None, label: str) -> Seconds:
        """Return a rate times an amount; zero if either is unknown, which is recorded."""
        if times == 0:
            return NO_TIME
        rate_and_source = self._rates.find(quantity, kind)
        if rate_and_source is None:
            self._cost.unknown.add(f"seconds of {QUANTITY_NAMES[quantity]} ({label})")
            return NO_TIME
        if times is None:
            self._cost.unknown.add(f"how many: {UNIT_NAMES[quantity]} ({label})")
            return NO_TIME
        rate, source = rate_and_source
        self._cost.sources.add(source)
        return rate * times


def _trial_cost(work: TrialWork, rates: Rates, imports: Iterator[int]) -> Cost:
    cost = Cost()
    accumulator = _CostAccumulator(rates, cost)
    model = work.config.model.path
    if not work.answered:  # scoring needs no model
        cost.start = accumulator.multiply("imports", work.start, next(imports), model)
        cost.start += accumulator.multiply("model", work.start, 1, model)
    if work.training is not None:
        rows = row_count(work.config, work.rows, rates)
        steps = training_steps(work.config, rows)
        rounds = work.config.pairs.rounds
        if rounds:  # its pairs are made in it
            cost.train += _sampling_time(work, rows, accumulator)
        else:
            cost.start += accumulator.multiply("row", work.row, rows, work.config.data.source)
        cost.train += accumulator.multiply("setup", work.training, rounds or 1, work.trial.arm)
        cost.train += accumulator.multiply("step", work.training, steps, work.trial.arm)
    for key, benchmark_questions in work.questions.items():
        count = _question_count(benchmark_questions, rates)
        if not work.answered:
            cost.answer += accumulator.multiply("answer", benchmark_questions.kind, count, key)
        cost.score += accumulator.multiply(
            "score", score_kind(benchmark_questions.settings), count, key
        )
    cost.start *= work.processes
    cost.train *= work.processes  # a step is all workers' together; answers are shared out
    cost.gpu = (cost.total_time - cost.score).wall * work.config.engine.gpus_per_worker
    return cost


def _sampling_time(work: TrialWork, rows: int | None, accumulator: _CostAccumulator) -> Seconds:
    """Return the time of the answers that a trial samples and ranks in all its rounds."""
    settings, prompts = work.config.pairs, round_prompts(work.config, rows)
    answers = None if prompts is None else settings.rounds * prompts * settings.answers
    return accumulator.multiply(
        "answer", sampling_kind(work.config), answers, f"pairs of {work.trial.arm}"
    )


def _pass_cost(work: CacheBuildWork, rates: Rates, parts: int, imports: Iterator[int]) -> Cost:
    """Return the cost of passes. Each part loads the model and checks the data."""
    cost = Cost()
    accumulator = _CostAccumulator(rates, cost)
    start, model = start_kind(work.config), work.config.model.path
    startup = accumulator.multiply("imports", start, next(imports), model)
    startup += accumulator.multiply("model", start, 1, model)
    samples = row_count(work.config, work.samples, rates)
    startup += accumulator.multiply("row", row_kind(work.config), samples, work.config.data.source)
    cost.passes = startup * parts + accumulator.multiply("sample", work.kind, samples, work.name)
    cost.gpu = cost.total_time.wall * work.config.engine.gpus_per_worker
    return cost


def _question_count(questions: BenchmarkQuestions, rates: Rates) -> int | None:
    """Return the number of answers, from the plan's count of questions or from a source."""
    if questions.questions is not None:
        return questions.times * questions.questions
    size = rates.size("questions", questions.kind)
    return None if size is None else questions.times * size[0]


def row_count(config: TrialConfig, known_count: int | None, rates: Rates) -> int | None:
    """Return the number of rows of a trial's data, from the plan's count or from a source."""
    if known_count is not None:
        return known_count
    size = rates.size("rows", row_kind(config))
    limit = config.data.limit
    return None if size is None else size[0] if limit is None else min(size[0], limit)


def _makespan(seconds: Sequence[float], slots: int) -> float:
    """Return when the last job ends, if each starts in order as soon as a slot is free.

    A run with several slots starts a seed's longest trial first, and may end sooner.
    """
    slot_ends = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(slot_ends, slot_ends[0] + duration)
    return max(slot_ends)
