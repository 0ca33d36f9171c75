"""Look up how long a step, an answer or a sample takes, and the source of the rate.

A rate belongs to a quantity and a kind of work (orchestrator/cost/kinds.py). Sources have an order:
the user's rates, earlier trials, a calibration. A rate that no source has is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: session: of Ray, once a run. dispatch: a trial's way to its worker on Ray.
#: imports, model: once a trial, of its process. row: of the data, checked. setup: once a training,
#: beside its steps. step: of training. answer: made. score: of an answer, by rules and judges.
#: sample: of a reference pass.
Quantity = Literal[
    "session", "dispatch", "imports", "model", "row", "setup", "step", "answer", "score", "sample"
]

#: memory: the most that a trial held of its device, in bytes. saved: a trained model's folder, in
#: bytes. rows: of data that planning does not open, as of a hub name. questions: of a benchmark
#: whose files are not here.
Size = Literal["memory", "saved", "rows", "questions"]

#: A kind that stands for every kind, for the user's rates.
ANY_KIND = "*"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """A time: by the clock, and computed by the CPU."""

    wall: float
    cpu: float

    def __add__(self, other: Seconds) -> Seconds:
        """Return both together."""
        return Seconds(wall=self.wall + other.wall, cpu=self.cpu + other.cpu)

    def __sub__(self, other: Seconds) -> Seconds:
        """Return it without another, which is a part of it."""
        return Seconds(wall=self.wall - other.wall, cpu=self.cpu - other.cpu)

    def __mul__(self, times: float) -> Seconds:
        """Return so many of it."""
        return Seconds(wall=self.wall * times, cpu=self.cpu * times)


NO_TIME = Seconds(wall=0.0, cpu=0.0)


@dataclass(frozen=True, kw_only=True)
class RateSource:
    """A source of rates."""

    name: str  # for people: "earlier trials"
    rates: Mapping[tuple[Quantity, str], Seconds]  # by (quantity, kind)
    sizes: Mapping[tuple[Size, str], int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """All sources, the most trusted first."""

    sources: Sequence[RateSource] = ()

    def find(self, quantity: Quantity, kind: str) -> tuple[Seconds, str] | None:
        """Return a rate and its source's name; None if no source has it."""
        for source in self.sources:
            for name in (kind, ANY_KIND):
                rate = source.rates.get((quantity, name))
                if rate is not None:
                    return rate, source.name
        return None

    def size(self, quantity: Size, kind: str) -> tuple[int, str] | None:
        """Return a size and its source's name; None if no source has it."""
        for source in self.sources:
            for name in (kind, ANY_KIND):
                size = source.sizes.get((quantity, name))
                if size is not None:
                    return size, source.name
        return None
