"""Describe a job that an executor runs, and the files that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from chip_core.config.benchmark import DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.reference_cache.spec import AvailableCaches, BuildShard

#: File in a job's folder that makes it end at its next step or batch.
STOP_FILE = "stop"
#: Phase in which a job's files are copied to its machine.
COPYING_PHASE = "copy from the storage"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step of an attempt at a trial, or a part of a reference pass, that a worker runs.

    A trial has two steps: training and answering the benchmarks, then scoring the answers by rules
    and judges, which needs neither the model nor a GPU.
    """

    id: str  # short, unique in a run; safe in file names
    name: str  # for people
    config: TrialConfig  # with the benchmarks that are still to be scored
    folder: Path  # folder of the attempt
    untrained: bool = False  # evaluate the untrained model
    trained_model: Path | None = None  # evaluate this model of an earlier attempt
    resume_from: Path | None = None  # earlier attempt with a model or checkpoints
    data_paths: DataPaths = DataPaths()  # where benchmarks' data and judges' replies are
    earlier_attempts: tuple[Path, ...] = ()  # earlier attempts, whose answers can be reused
    caches: AvailableCaches | None = None  # reference caches that it can read
    server: Path | None = None  # file with the address of the study's inference server
    shard: BuildShard | None = None  # only build this part of a reference pass
    answers: Path | None = None  # only score the answers in this attempt's folder
    can_stop_early: bool = False  # whether early stopping may end its training
    notes: tuple[str, ...] = ()  # notes on this attempt
    #: copies the first worker's files in `folder` to all workers' machines; a collective call
    share_files: Callable[[], None] | None = None

    @property
    def is_training(self) -> bool:
        """Whether it starts or resumes a training."""
        return not (self.untrained or self.trained_model or self.shard or self.is_scoring)

    @property
    def is_scoring(self) -> bool:
        """Whether it scores existing answers, without a model and on a CPU."""
        return self.answers is not None

    @property
    def num_workers(self) -> int:
        """The number of processes: of a training as configured, else one."""
        return self.config.engine.workers_per_trial if self.is_training else 1

    @property
    def num_gpus(self) -> float:
        """The number of GPUs that it holds."""
        return 0.0 if self.is_scoring else self.num_workers * self.config.engine.gpus_per_worker

    def scoring_job(self) -> Job:
        """Return the next step, which scores this one's answers in the same folder."""
        prefix, _, attempt = self.id.rpartition("-")
        return replace(
            self,
            id=f"{prefix}-score-{attempt}",
            answers=self.folder,
            trained_model=None,
            resume_from=None,
            earlier_attempts=(),
            caches=None,
            can_stop_early=False,
        )
