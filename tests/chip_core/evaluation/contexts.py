"""What answers in tests, also in processes of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.config.trial import ModelConfig
from chip_core.evaluate import evaluate
from chip_core.evaluation.generators.answering import InferenceContext
from chip_core.models import loading
from chip_core.results import Evaluation, Progress

SHAPES = BenchmarkConfig.model_validate({"name": "shapes", "limit": 24})


def make_context(folder: Path, **changes: Any) -> InferenceContext:
    """Make a context of the embedded model that answers four items together."""
    torch.set_num_threads(1)
    model, processor = loading.load(ModelConfig(path="shapes"))
    settings = {"weights": "w", "data_paths": DataPaths(), "batch_size": 4, **changes}
    return InferenceContext(model=model, processor=processor, folder=folder, **settings)


def answer_and_die(folder: str, batches: int) -> None:
    """Answer, and be killed as by kill -9 after so many batches."""
    batches_done = 0

    def report(progress: Progress) -> None:
        nonlocal batches_done
        batches_done += progress.phase == "answer shapes" and progress.done > 0
        if batches_done == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate(make_context(Path(folder), report_progress=report), "report", SHAPES)


def run_worker(rank: int, workers: int, store: str, folder: str, outcomes: Any) -> None:
    """Answer as one of several workers; then again, where the second fails."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=workers
    )
    try:
        context = make_context(Path(folder))
        evaluation: Evaluation = evaluate(context, "report", SHAPES)
        if rank == 1:
            context.model.generate = _raise_error
        longer_settings = SHAPES.model_copy(update={"max_new_tokens": 33})
        try:
            evaluate(context, "report", longer_settings)
        except Exception as error:
            outcomes[rank] = (
                evaluation.metrics,
                evaluation.metadata["n"],
                f"{type(error).__name__}: {error}",
            )
    finally:
        torch.distributed.destroy_process_group()


def _raise_error(**_: Any) -> None:
    raise ValueError("this worker's own trouble")
