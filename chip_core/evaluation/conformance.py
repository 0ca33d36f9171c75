"""Conformance checks for every benchmark, shipped or a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from chip_core.evaluation.aggregation import compute_values
from chip_core.evaluation.outcomes import MetricInfo, MetricOutcome
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.task import Benchmark, Item
from chip_core.utils.errors import TrialError, UserError, describe_error

_MAX_PICTURES = 20  # pictures that the check reads
#: Errors by which a benchmark may report a problem.
_REPORTED_ERRORS = (UserError, TrialError, ValueError)


def check_conformance(
    benchmark: Benchmark, *, data: Path | None = None, resources: Resources | None = None
) -> dict[str, str | None]:
    """Run all checks; return the problem of each, or None.

    Args:
        benchmark: the benchmark.
        data: its folder, if it has one.
        resources: what its scorer needs.
    """
    return dict(_ConformanceChecks(benchmark, data, resources or Resources()).run_all())


class _ConformanceChecks:
    """The checks of one benchmark, on answers made from its own truths."""

    def __init__(self, benchmark: Benchmark, data: Path | None, resources: Resources) -> None:
        self._benchmark = benchmark
        self._data = data
        self._resources = resources
        protocols = sorted(benchmark.protocols)
        self._protocol: ProtocolName = "corrected" if "corrected" in protocols else protocols[0]

    def run_all(self) -> Iterator[tuple[str, str | None]]:
        yield (
            "every metric says its unit and which way is better",
            _run_check(self._check_declarations),
        )
        repeatability = "there are questions, the same each time"
        problem = _run_check(self._check_repeatability)
        yield repeatability, problem
        if problem is not None:
            return
        items = self._load_items()
        for description, check in (
            ("every question has an id of its own", _check_ids),
            ("every question says something", _check_prompts),
            ("pictures can be read", _check_pictures),
            ("figures are the declared ones", self._check_metrics),
            ("items come to the figure", self._check_sums),
            ("the order of answers changes no figure", self._check_order),
            ("empty answers give figures, or a sentence", self._check_empty_answers),
            ("an answer to no question is told, or not counted", self._check_unknown_item),
        ):
            yield description, _run_check(partial(check, items))

    def _load_items(self) -> Sequence[Item]:
        return self._benchmark.items("report", data=self._data, protocol=self._protocol)

    def _score(self, answers: Sequence[Answer]) -> ScoreResult:
        return self._benchmark.score(
            answers, data=self._data, protocol=self._protocol, resources=self._resources
        )

    def _make_answers(self, items: Sequence[Item]) -> list[Answer]:
        """Return answers of which every other one is right, and the rest are "no"."""
        return [
            Answer(
                item=item.id,
                response="no" if index % 2 else self._benchmark.truth(item) or "yes",
                fields=item.fields,
            )
            for index, item in enumerate(items)
        ]

    def _check_declarations(self) -> str | None:
        if not self._benchmark.metrics:
            return "it has no metrics"
        for name, info in self._benchmark.metrics.items():
            if not info.unit or info.goal not in ("minimize", "maximize"):
                return f"{name}: unit {info.unit!r}, goal {info.goal!r}"
        return None

    def _check_repeatability(self) -> str | None:
        first, second = self._load_items(), self._load_items()
        if not first:
            return "there are none"
        is_repeatable = [(item.id, item.prompt) for item in first] == [
            (item.id, item.prompt) for item in second
        ]
        return None if is_repeatable else "they are others when they are asked for again"

    def _check_metrics(self, items: Sequence[Item]) -> str | None:
        scored = self._score(self._make_answers(items))
        declared = self._benchmark.metrics
        if not scored.metrics:
            return "there are none"
        for metric in scored.metrics:
            if metric.name not in declared:
                return f"'{metric.name}' is not declared"
            info = declared[metric.name]
            if (metric.unit, metric.goal) != (info.unit, info.goal):
                return f"{metric.name} comes as {metric.unit}, to {metric.goal}: declared otherwise"
            if metric.value is not None and not math.isfinite(metric.value):
                return f"{metric.name} is {metric.value}"
        if scored.n + scored.missing < len(items):
            return f"{scored.n} scored and {scored.missing} missing of {len(items)}"
        return None

    def _check_sums(self, items: Sequence[Item]) -> str | None:
        metrics = self._score(self._make_answers(items)).metrics
        return next(filter(None, map(_find_sum_problem, metrics)), None)

    def _check_order(self, items: Sequence[Item]) -> str | None:
        answers = self._make_answers(items)
        forward, backward = self._score(answers).values, self._score(answers[::-1]).values
        changed = [
            name for name, value in forward.items() if not _is_close(value, backward.get(name))
        ]
        return f"{changed[0]} is another" if changed else None

    def _check_empty_answers(self, items: Sequence[Item]) -> str | None:
        answers = [Answer(item=item.id, response="", fields=item.fields) for item in items]
        try:
            self._score(answers)
        except _REPORTED_ERRORS as error:
            return None if len(str(error).splitlines()) == 1 else "its sentence has several lines"
        return None

    def _check_unknown_item(self, items: Sequence[Item]) -> str | None:
        answers = self._make_answers(items)
        stray = Answer(item="no such question", response="yes", fields=answers[0].fields)
        try:
            scored = self._score([*answers, stray])
        except _REPORTED_ERRORS:
            return None
        return None if scored.n <= len(items) else "it is counted"


def _run_check(check: Callable[[], str | None]) -> str | None:
    """Return the result of a check, or a description of its exception."""
    try:
        return check()
    except Exception as error:  # a user's code may raise anything, which is the problem then
        return describe_error(error)


def _check_ids(items: Sequence[Item]) -> str | None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            return f"'{item.id}' is there twice"
        seen.add(item.id)
    return None


def _check_prompts(items: Sequence[Item]) -> str | None:
    return next((f"'{item.id}' has no prompt" for item in items if not item.prompt.strip()), None)


def _check_pictures(items: Sequence[Item]) -> str | None:
    for item in items[:_MAX_PICTURES]:
        for picture in item.pictures:
            image = picture.read()
            if image.mode != "RGB":
                return f"{picture.key} is {image.mode}, not RGB"
    return None


def _find_sum_problem(metric: MetricOutcome) -> str | None:
    """Return how a figure differs from the sum of its items; a figure of figures has no items."""
    if not metric.items:
        return None
    info = MetricInfo(unit=metric.unit, goal=metric.goal)
    expected = compute_values({metric.name: info}, {metric.name: metric.items})[metric.name]
    if _is_close(metric.value, expected):
        return None
    return f"{metric.name} is {metric.value}, its items come to {expected}"


def _is_close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)
