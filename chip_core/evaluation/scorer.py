"""The interface of scorers: answers and a benchmark's own files in, figures out.

A scorer is pure except for reading those files. There are three protocols:

| protocol    | what its figures are                                                             |
|-------------|----------------------------------------------------------------------------------|
| `official`  | what the benchmark's own script prints for the same answers, its quirks included |
| `corrected` | what the benchmark says it measures; docs/benchmarks.md lists each difference    |
| `chip`      | the paper's reading of the answers, where it has one of its own                  |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from chip_core.evaluation.outcomes import MetricInfo, MetricOutcome
from chip_core.evaluation.unreadable import Unreadable
from chip_core.utils.errors import UserError
from chip_core.utils.registry import Registry

ProtocolName = Literal["official", "corrected", "chip"]
PROTOCOLS: tuple[ProtocolName, ...] = ("official", "corrected", "chip")

#: What a scorer may need besides the benchmark's folder.
Need = Literal["similarity", "coco", "judge", "nltk"]


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


@dataclass(frozen=True, kw_only=True)
class Scored:
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


class Scorer(Protocol):
    """A benchmark's scorer."""

    name: str
    version: str  # "amber-1": raised whenever its figures change; recorded with them
    needs: frozenset[Need]
    metrics: Mapping[str, MetricInfo]
    protocols: frozenset[ProtocolName]  # those it knows; any other is refused with a sentence

    def read_responses(self, path: Path) -> list[Answer]:
        """Read answers in the benchmark's own format.

        Raises:
            UserError: the file does not exist or has another format; one line that names the
                place.
        """

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Score answers against the benchmark's files in `data`.

        Raises:
            UserError: a file or a resource is missing, or (`official`) the official script would
                not have given a figure; one line that names the place.
        """


SCORERS: Registry[Scorer] = Registry("benchmark")


def require_protocol(scorer: Scorer, protocol: ProtocolName) -> None:
    """Raise if a scorer does not implement a protocol.

    Raises:
        UserError: the protocols that it implements.
    """
    if protocol not in scorer.protocols:
        choices = ", ".join(name for name in PROTOCOLS if name in scorer.protocols)
        raise UserError(
            f"{scorer.name}: protocol {protocol} is unknown here (the paper says nothing about "
            f"it): choose from {choices}"
        )
