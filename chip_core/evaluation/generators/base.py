"""What an answer generator is to the rest: questions and a model's weights in, answers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.utils.errors import TrialError

#: Told of answers as they are made: whoever listens keeps them.
Tell = Callable[[Sequence[tuple[Item, Response]]], None]


class ServerLostError(TrialError):
    """A server cannot be reached; what was told by then is made."""


@dataclass(frozen=True, kw_only=True)
class AnsweringModel:
    """The weights that answer: in this process, and where an engine of another reads them."""

    model: Any  # in this process
    processor: Any
    weights: str  # what tells them from all others
    bf16: bool = False
    base: str = ""  # the untrained model's folder or hub name
    revision: str | None = None  # of a hub name
    trust_remote_code: bool = False
    trained: Path | None = None  # a Hugging Face or a PEFT folder; None: the untrained model


@dataclass(kw_only=True)
class Pace:
    """How answers were made."""

    seconds: float = 0.0
    waited: float = 0.0  # of them without work for the engine: no picture or prompt was ready
    notes: list[str] = field(default_factory=list)  # what has to be said of it


class Generator(ABC):
    """An engine that answers questions, without drawing at random."""

    #: what of it decides answers beside weights, questions and decoding; it is kept with them
    identity: Mapping[str, Any]
    label: str  # what people call it

    @abstractmethod
    def answer(
        self, items: Sequence[Item], model: AnsweringModel, decoding: Decoding, tell: Tell
    ) -> Pace:
        """Answer each item once, in any order.

        Raises:
            TrialError: it cannot; what was told by then is made.
        """

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Give back what it holds: a server, an adapter that it loaded into one."""
