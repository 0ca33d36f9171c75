"""What a benchmark is to the rest: items to answer, and a scorer for the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from chip_core.evaluation.outcomes import MetricOutcome
from chip_core.registry import Registry

#: Which part of a benchmark: the one tuned on, or the one quoted.
Side = Literal["select", "report"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    id: str
    image: Image.Image
    prompt: str


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """What a metric's figure means."""

    unit: str
    goal: Literal["minimize", "maximize"]


class Benchmark(Protocol):
    """A benchmark: pure but for reading its own files."""

    metrics: Mapping[str, MetricInfo]
    max_new_tokens: int

    def items(self, side: Side, limit: int | None) -> Sequence[Item]:
        """Return the questions of a side, the first `limit` of them."""

    def score(self, answers: Sequence[tuple[str, str]]) -> Sequence[MetricOutcome]:
        """Return every metric of (item id, response) pairs."""

    def truth(self, item: str) -> str:
        """Return what a right answer holds, for people to read beside a response."""


@runtime_checkable
class Illustrated(Protocol):
    """A benchmark that has an item's image at hand, to be shown beside an answer."""

    def image(self, item: str) -> Image.Image:
        """Return the image of an item, without reading all the others.

        Raises:
            ValueError: the id names no item.
        """


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def metric_name(side: Side, benchmark: str, metric: str) -> str:
    """Return a figure's name: `BENCHMARK/METRIC`, under `select/` where it was tuned on."""
    name = f"{benchmark}/{metric}"
    return f"select/{name}" if side == "select" else name
