"""What a benchmark is to the rest: items to answer, and a scorer for the answers."""

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

    from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, Scored

#: Which part of a benchmark: the one tuned on, or the one quoted.
Side = Literal["select", "report"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image that is read when it is asked for."""

    key: str  # equal keys are one picture; its file's name, or what stands for it
    read: Callable[[], Image.Image]
    file: Path | None = None  # where it is read from; None: it is made, or lies within another file

    @cached_property
    def pixels(self) -> int:
        """Its size, 0 where no file says: like sizes are answered together."""
        from chip_core.data.image_files import open_image

        if self.file is None:
            return 0
        try:
            with open_image(self.file) as image:
                return image.width * image.height
        except ValueError:
            return 0  # told when it is read


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question."""

    id: str
    prompt: str
    pictures: tuple[Picture, ...]  # shown before the prompt
    task: str = ""  # answers of one task are about as long: they are made together
    #: what the scorer reads beside the response
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an answer is made. Nothing is drawn at random: temperature 0."""

    max_new_tokens: int  # longest answer
    num_beams: int = 1  # 1 is greedy


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer, and what is known of how it was made."""

    text: str
    tokens: int | None = None  # of the answer, its end included
    cut: bool | None = None  # whether max_new_tokens ended it
    prompt_tokens: int | None = None  # as another engine than transformers counted them
    prompt_ids: str | None = None  # a mark of the prompt's ids, as such an engine gave them


class Benchmark(ABC):
    """A benchmark: pure but for reading its own files. A user's own is a subclass, too."""

    version: str  # "amber-1": raised whenever its figures change; recorded with them
    metrics: Mapping[str, MetricInfo]
    #: what it takes beside a model: "data" (a folder of its own), and what its scorer needs
    needs: frozenset[str] = frozenset()
    protocols: frozenset[ProtocolName] = frozenset({"official"})  # those it knows
    splits: bool = False  # whether `select` and `report` are different questions

    def decoding(self, protocol: ProtocolName) -> Decoding:
        """Return how its questions are answered."""
        return Decoding(max_new_tokens=256)

    @abstractmethod
    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return all questions of a side, always the same in the same order.

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
    ) -> Scored:
        """Return every metric of the answers.

        Raises:
            UserError: as a scorer's `score`.
        """

    def group(self, item: Item) -> str:
        """Return what an item belongs to: the items of one group are never in different halves.

        By default its first picture, and itself where it has none.
        """
        return item.pictures[0].key if item.pictures else item.id

    def needs_of(self, items: Sequence[Item]) -> frozenset[str]:
        """Return what these questions need, where that is less than `needs`."""
        return self.needs

    def truth(self, item: Item) -> str:
        """Return what a right answer holds, for people to read beside a response."""
        return ""

    def files(self, data: Path | None) -> Sequence[Path]:
        """Return the files that decide questions and figures; pictures aside.

        Raises:
            UserError: one is missing.
        """
        return ()

    def tools(self) -> Mapping[str, str]:
        """Return other programs that its figures come from, with their versions.

        Raises:
            UserError: one is not installed.
        """
        return {}


class ExternalBenchmark(Benchmark):
    """A benchmark that another program asks and scores, given a model's folder."""

    def items(self, side: Side, *, data: Path | None, protocol: ProtocolName) -> Sequence[Item]:
        """Return nothing: the questions are the program's."""
        return ()

    def score(
        self,
        answers: Sequence[Answer],
        *,
        data: Path | None,
        protocol: ProtocolName,
        resources: Resources,
    ) -> Scored:
        """Never called: there are no answers of ours."""
        raise NotImplementedError

    @abstractmethod
    def problems(self) -> list[str]:
        """Return what the program lacks, each with what to do."""

    @abstractmethod
    def ask(
        self, model: Path, *, folder: Path, batch_size: int, device: str
    ) -> tuple[Scored, Mapping[str, Any]]:
        """Ask a model; return what it came to, and what has to be known beside it.

        Raises:
            UserError: the program is not installed.
            TrialError: it failed.
        """


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def metric_name(side: Side, benchmark: str, metric: str) -> str:
    """Return a figure's name: `BENCHMARK/METRIC`, under `select/` where it was tuned on."""
    name = f"{benchmark}/{metric}"
    return f"select/{name}" if side == "select" else name
