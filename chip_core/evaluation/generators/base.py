"""The interface of answer generators: questions and a model's weights in, answers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip_core.config.trial import ModelConfig
from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.models.loading import find_local_folder
from chip_core.utils.errors import TrialError

#: Called with answers as they are generated, to store them.
OnAnswers = Callable[[Sequence[tuple[Item, Response]]], None]


class ServerLostError(TrialError):
    """A server cannot be reached; answers reported before are valid."""


@dataclass(frozen=True, kw_only=True)
class AnsweringModel:
    """The weights that answer: in this process, and where another process can read them."""

    model: Any  # in this process
    processor: Any
    weights: str  # an id unique to them
    bf16: bool = False
    base: str = ""  # the untrained model's folder or hub name
    revision: str | None = None  # of a hub name
    trust_remote_code: bool = False
    trained: Path | None = None  # a Hugging Face or a PEFT folder; None: the untrained model


def locate_base(config: ModelConfig) -> dict[str, Any]:
    """Return an untrained model's fields of `AnsweringModel`."""
    folder = find_local_folder(config.path)
    return {
        "base": str(folder or config.path),
        "revision": None if folder is not None else config.revision,
        "trust_remote_code": config.trust_remote_code,
    }


@dataclass(kw_only=True)
class GenerationTiming:
    """The timing of generated answers."""

    seconds: float = 0.0
    wait_seconds: float = 0.0  # of them, how long the engine waited for a picture or prompt
    notes: list[str] = field(default_factory=list)  # for the report


class Generator(ABC):
    """An engine that answers questions, without random sampling."""

    #: the engine's settings that affect answers; stored with them
    identity: Mapping[str, Any]
    label: str  # its name for people

    @abstractmethod
    def answer(
        self,
        items: Sequence[Item],
        model: AnsweringModel,
        decoding: Decoding,
        on_answers: OnAnswers,
    ) -> GenerationTiming:
        """Answer each item, of which there is at least one, once and in any order.

        Raises:
            TrialError: it cannot; answers reported before are valid.
        """

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Release its resources: a server, an adapter that it loaded into one."""
