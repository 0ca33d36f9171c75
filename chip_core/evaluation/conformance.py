"""Conformance checks for every benchmark, shipped or a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from chip_core.evaluation.outcomes import MetricOutcome
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, Scored
from chip_core.evaluation.task import Benchmark, Item
from chip_core.utils.errors import TrialError, UserError, describe_error

_READ = 20  # pictures that the check reads
_TOLD = (UserError, TrialError, ValueError)  # errors by which a benchmark may report a problem


def conformance(
    benchmark: Benchmark, *, data: Path | None = None, resources: Resources | None = None
) -> dict[str, str | None]:
    """Run all checks; return the problem of each, or None.

    Args:
        benchmark: the benchmark.
        data: its folder, if it has one.
        resources: what its scorer needs.
    """
    return dict(_Checks(benchmark, data, resources or Resources()).all())


class _Checks:
    """The checks of one benchmark, on answers made from its own truths."""

    def __init__(self, benchmark: Benchmark, data: Path | None, resources: Resources) -> None:
        self._benchmark = benchmark
        self._data = data
        self._resources = resources
        known = sorted(benchmark.protocols)
        self._protocol: ProtocolName = "corrected" if "corrected" in known else known[0]

    def all(self) -> Iterator[tuple[str, str | None]]:
        yield "every metric says its unit and which way is better", _guarded(self._declared)
        questions = "there are questions, the same each time"
        problem = _guarded(self._repeated)
        yield questions, problem
        if problem is not None:
            return
        items = self._items()
        for what, check in (
            ("every question has an id of its own", _ids),
            ("every question says something", _prompts),
            ("pictures can be read", _pictures),
        ):
            yield what, _guarded(partial(check, items))
        for what, score in (
            ("figures are the declared ones", self._figures),
            ("items come to the figure", self._sums),
            ("the order of answers changes no figure", self._order),
            ("empty answers give figures, or a sentence", self._empty),
        ):
            yield what, _guarded(partial(score, items))
        yield (
            "an answer to no question is told, or not counted",
            _guarded(partial(self._unknown, items)),
        )

    def _items(self) -> Sequence[Item]:
        return self._benchmark.items("report", data=self._data, protocol=self._protocol)

    def _score(self, answers: Sequence[Answer]) -> Scored:
        return self._benchmark.score(
            answers,
            data=self._data,
            protocol=self._protocol,
            resources=self._resources,
        )

    def _answers(self, items: Sequence[Item]) -> list[Answer]:
        """Return answers of which every other one is right, and the rest are "no"."""
        return [
            Answer(
                item=item.id,
                response="no" if place % 2 else self._benchmark.truth(item) or "yes",
                fields=item.fields,
            )
            for place, item in enumerate(items)
        ]

    def _declared(self) -> str | None:
        if not self._benchmark.metrics:
            return "it has no metrics"
        for name, info in self._benchmark.metrics.items():
            if not info.unit or info.goal not in ("minimize", "maximize"):
                return f"{name}: unit {info.unit!r}, goal {info.goal!r}"
        return None

    def _repeated(self) -> str | None:
        one, other = self._items(), self._items()
        if not one:
            return "there are none"
        same = [(item.id, item.prompt) for item in one] == [
            (item.id, item.prompt) for item in other
        ]
        return None if same else "they are others when they are asked for again"

    def _figures(self, items: Sequence[Item]) -> str | None:
        found = self._score(self._answers(items))
        declared = self._benchmark.metrics
        if not found.metrics:
            return "there are none"
        for metric in found.metrics:
            if metric.name not in declared:
                return f"'{metric.name}' is not declared"
            info = declared[metric.name]
            if (metric.unit, metric.goal) != (info.unit, info.goal):
                return f"{metric.name} comes as {metric.unit}, to {metric.goal}: declared otherwise"
            if metric.value is not None and not math.isfinite(metric.value):
                return f"{metric.name} is {metric.value}"
        if found.n + found.missing < len(items):
            return f"{found.n} scored and {found.missing} missing of {len(items)}"
        return None

    def _sums(self, items: Sequence[Item]) -> str | None:
        for metric in self._score(self._answers(items)).metrics:
            problem = _sum_problem(metric)
            if problem is not None:
                return problem
        return None

    def _order(self, items: Sequence[Item]) -> str | None:
        answers = self._answers(items)
        one, other = self._score(answers).values, self._score(answers[::-1]).values
        moved = [name for name, value in one.items() if not _equal(value, other.get(name))]
        return f"{moved[0]} is another" if moved else None

    def _empty(self, items: Sequence[Item]) -> str | None:
        answers = [Answer(item=item.id, response="", fields=item.fields) for item in items]
        try:
            self._score(answers)
        except _TOLD as error:
            return None if len(str(error).splitlines()) == 1 else "its sentence has several lines"
        return None

    def _unknown(self, items: Sequence[Item]) -> str | None:
        answers = self._answers(items)
        stray = Answer(item="no such question", response="yes", fields=answers[0].fields)
        try:
            found = self._score([*answers, stray])
        except _TOLD:
            return None
        return None if found.n <= len(items) else "it is counted"


def _guarded(check: Callable[[], str | None]) -> str | None:
    """Return the result of a check, or a description of its exception."""
    try:
        return check()
    except Exception as error:  # a user's code may raise anything, which is the problem then
        return describe_error(error)


def _ids(items: Sequence[Item]) -> str | None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            return f"'{item.id}' stands twice"
        seen.add(item.id)
    return None


def _prompts(items: Sequence[Item]) -> str | None:
    return next((f"'{item.id}' has no prompt" for item in items if not item.prompt.strip()), None)


def _pictures(items: Sequence[Item]) -> str | None:
    for item in items[:_READ]:
        for picture in item.pictures:
            image = picture.read()
            if image.mode != "RGB":
                return f"{picture.key} is {image.mode}, not RGB"
    return None


def _sum_problem(metric: MetricOutcome) -> str | None:
    """Return how a figure differs from the sum of its items; a figure of figures has no items."""
    if not metric.items:
        return None
    whole = sum(outcome.denominator for outcome in metric.items)
    scale = 100.0 if metric.unit == "percent" else 1.0
    expected = scale * sum(outcome.numerator for outcome in metric.items) / whole if whole else None
    if _equal(metric.value, expected):
        return None
    return f"{metric.name} is {metric.value}, its items come to {expected}"


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
