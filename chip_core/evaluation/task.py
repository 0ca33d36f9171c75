"""The interface of benchmarks: items to answer, and a scorer for the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chip_core.evaluation.outcomes import MetricInfo as MetricInfo
from chip_core.utils.registry import Registry

if TYPE_CHECKING:
    from PIL import Image

    from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult

#: The part of a benchmark: the one used to tune, or the one reported.
Side = Literal["select", "report"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image that is read when it is needed."""

    key: str  # equal keys are one picture; the file's name, or an id
    read: Callable[[], Image.Image]
    file: Path | None = None  # its file; None: it is generated, or stored within another file

    @cached_property
    def pixels(self) -> int:
        """The number of pixels, 0 without a file: pictures of like size are answered together."""
        from chip_core.data.image_files import open_image

        if self.file is None:
            return 0
        try:
            with open_image(self.file) as image:
                return image.width * image.height
        except ValueError:
            return 0  # reported when it is read


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    id: str
    prompt: str
    pictures: tuple[Picture, ...]  # shown before the prompt
    task: str = ""  # answers of one task have similar lengths: they are generated together
    #: other values that the scorer reads besides the response
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is generated. Nothing is drawn at random: the temperature is 0."""

    max_new_tokens: int  # longest answer
    num_beams: int = 1  # 1 is greedy


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer, with facts about its generation."""

    text: str
    tokens: int | None = None  # of the answer, including its end token
    cut: bool | None = None  # whether max_new_tokens ended it
    prompt_tokens: int | None = None  # counted by an engine other than transformers
    prompt_ids: str | None = None  # a hash of the prompt's ids that such an engine returned


class Benchmark(ABC):
    """A benchmark, pure except for reading its own files. Users may subclass it."""

    version: str  # "amber-1": raised whenever its figures change; recorded with them
    metrics: Mapping[str, MetricInfo]
    #: what it needs besides a model: "data" (a folder of its own), and its scorer's needs
    needs: frozenset[str] = frozenset()
    protocols: frozenset[ProtocolName] = frozenset({"official"})  # those it implements
    splits: bool = False  # whether `select` and `report` are different questions

    def decoding(self, protocol: ProtocolName) -> Decoding:
        """Return how its questions are answered."""
        return Decoding(max_new_tokens=256)

    @abstractmethod
    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return all questions of a side, always the same ones in the same order.

        Raises:
            UserError: a file is missing or broken; one line that names it.
        """

    @abstractmethod
    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Return every metric of the answers, by the benchmark's files in `data`.

        Raises:
            UserError: a file or a resource is missing, or (`official`) the official script would
                not have given a figure; one line that names the place.
        """

    def group(self, item: Item) -> str:
        """Return the group of an item; the items of one group are always in the same half.

        The default is the item's first picture, or the item itself if it has none.
        """
        return item.pictures[0].key if item.pictures else item.id

    def needs_of(self, items: Sequence[Item]) -> frozenset[str]:
        """Return what these questions need, if that is less than `needs`."""
        return self.needs

    def truth(self, item: Item) -> str:
        """Return what a right answer contains, for people to read beside a response."""
        return ""

    def files(self, data: Path | None) -> Sequence[Path]:
        """Return the files that decide questions and figures, without pictures.

        Raises:
            UserError: one is missing.
        """
        return ()

    def tools(self) -> Mapping[str, str]:
        """Return the other programs that compute its figures, with their versions.

        Raises:
            UserError: one is not installed.
        """
        return {}


class ExternalBenchmark(Benchmark):
    """A benchmark that an external program runs and scores, given a model's folder."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return nothing: the program has the questions."""
        return ()

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> ScoreResult:
        """Raise: the external program scores its answers itself."""
        raise NotImplementedError

    @abstractmethod
    def problems(self) -> list[str]:
        """Return what the program lacks, each with what to do."""

    @abstractmethod
    def ask(
        self, model: Path, *, folder: Path, batch_size: int, device: str
    ) -> tuple[ScoreResult, Mapping[str, Any]]:
        """Run the program on a model; return its figures and their metadata.

        Raises:
            UserError: the program is not installed.
            TrialError: it failed.
        """


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def metric_name(side: Side, benchmark: str, metric: str) -> str:
    """Return a figure's name: `BENCHMARK/METRIC`, under `select/` if it is used to tune."""
    name = f"{benchmark}/{metric}"
    return f"select/{name}" if side == "select" else name
