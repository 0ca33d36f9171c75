"""What a benchmark's score is computed from, and what it consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from chip_core.evaluation.outcomes import MetricOutcome
from chip_core.evaluation.unreadable import Unreadable

ProtocolName = Literal["official", "corrected", "chip"]
PROTOCOLS: tuple[ProtocolName, ...] = ("official", "corrected", "chip")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answered question."""

    item: str  # id as in the benchmark's own files, as text
    response: str
    #: other values of the answer's row that the scorer reads (verdicts of HallusionBench, …)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """One call of a judge."""

    item: str  # replies in a file are found by it
    messages: tuple[Mapping[str, Any], ...]  # as the OpenAI chat interface takes them
    temperature: float = 0.0
    max_tokens: int | None = None


class Judge(Protocol):
    """A language model that reads answers."""

    model: str  # the requested name; "replay" for replies read from a file

    def ask(self, requests: Sequence[JudgeRequest]) -> Sequence[str | None]:
        """Return the raw reply to each request; None if the call failed for good."""


class Similarity(Protocol):
    """The similarity of two words in meaning: 1 for equal ones."""

    def __call__(self, first: str, second: str) -> float:
        """Return the similarity of two words."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of a text."""

    text: str
    tag: str  # Penn Treebank: NN, NNS, NNP, JJ, …
    lemma: str


class Tagger(Protocol):
    """A tokenizer with tags and lemmas (Object HalBench)."""

    name: str  # with its version; recorded with the figures

    def __call__(self, text: str) -> Sequence[Token]:
        """Return the text's tokens."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a scorer may need besides the benchmark's folder.

    The default `tagger` is NLTK's. Without `similarity`, spaCy's en_core_web_lg is used if it is
    installed.
    """

    similarity: Similarity | None = None
    coco: Path | None = None  # COCO's annotation files, or a JSON of image id -> objects
    judge: Judge | None = None
    tagger: Tagger | None = None
    #: under `limit`: the selected items; the benchmark is taken to have no others
    only: frozenset[str] | None = None

    def selects(self, item: str) -> bool:
        """Return whether an item is one of the selected ones."""
        return self.only is None or item in self.only


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """The figures of a set of answers."""

    #: value = the protocol's figure, rounded where the official script prints it rounded
    metrics: tuple[MetricOutcome, ...]
    n: int  # items scored
    missing: int  # items of the benchmark without an answer or without a readable judge's reply
    #: texts without a verdict, letter or rating: an answer of the model counts as wrong, a judge's
    #: reply as missing
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def values(self) -> dict[str, float | None]:
        """The figures by name; None if one is undefined."""
        return {metric.name: metric.value for metric in self.metrics}


#: Former name, for plug-ins: their source, which imports it, is part of fingerprints.
Scored = ScoreResult
