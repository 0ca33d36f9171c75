"""Describe a job: what an executor runs, and the files that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from chip_core.config.benchmark import DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.reference_cache.spec import AvailableCaches, BuildShard

#: There while a job is to end at its next step or batch, in its folder.
STOP = "stop"
#: The phase in which files that a job needs are copied to its machine.
COPYING = "copy from the storage"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step of an attempt at a trial, or a share of a reference pass: all that a worker needs.

    A trial has two steps: its model is trained and answers its benchmarks, and its answers are
    scored by rules and judges, which needs neither the model nor a GPU.
    """

    id: str  # short, unique in a run; safe in file names
    name: str  # for people
    config: TrialConfig  # its benchmarks are those still to be scored
    folder: Path  # the attempt's own
    untrained: bool = False  # ask the model as it is
    trained_model: Path | None = None  # ask this model, trained by an earlier attempt
    resume_from: Path | None = None  # an earlier attempt's, with a model or checkpoints
    places: DataPaths = DataPaths()  # where benchmarks' data and judges' replies lie
    earlier: tuple[Path, ...] = ()  # earlier attempts' folders, whose answers can be taken over
    caches: AvailableCaches | None = None  # the stores of reference passes that it may read
    server: Path | None = None  # says where the study's own server is, which answers
    shard: BuildShard | None = None  # make this share of a reference pass, and nothing else
    answers: Path | None = None  # score the answers of this attempt's folder, and nothing else
    may_be_cut: bool = False  # whether early stopping may end its training
    notes: tuple[str, ...] = ()  # what is to be said of this attempt
    #: brings what the first worker left in `folder` to the machines of all, who call it together
    share: Callable[[], None] | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a training that is to be made, or gone on with."""
        return not (self.untrained or self.trained_model or self.shard or self.scores)

    @property
    def scores(self) -> bool:
        """Whether answers that are there are scored: without a model, on a CPU."""
        return self.answers is not None

    @property
    def workers(self) -> int:
        """How many processes share it: those of a training; all else is one's work."""
        return self.config.engine.workers_per_trial if self.trains else 1

    @property
    def gpus(self) -> float:
        """How many GPUs it holds."""
        return 0.0 if self.scores else self.workers * self.config.engine.gpus_per_worker

    def scoring(self) -> Job:
        """Return the step after this one: its answers are scored, in the same folder."""
        head, _, attempt = self.id.rpartition("-")
        return replace(
            self,
            id=f"{head}-score-{attempt}",
            answers=self.folder,
            trained_model=None,
            resume_from=None,
            earlier=(),
            caches=None,
            may_be_cut=False,
        )
