"""Run benchmarks whose own program generates and scores answers, given the model's folder."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chip_core.config.benchmark import BenchmarkConfig
from chip_core.evaluation.scorer import Scored
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.models.adapters import is_adapted, merge_adapters


def run_external(
    benchmark: ExternalBenchmark,
    settings: BenchmarkConfig,
    *,
    model: Any,
    processor: Any,
    checkpoint_dir: Path | None,
    folder: Path,
    batch_size: int,
) -> tuple[Scored, dict[str, Any]]:
    """Run a benchmark's own program on a model; return its figures and their metadata.

    Args:
        benchmark: the benchmark.
        settings: its settings.
        model: the model; it leaves its device to the program meanwhile.
        processor: its processor.
        checkpoint_dir: a whole Hugging Face folder of it, if there is one.
        folder: the trial's folder.
        batch_size: questions answered together.

    Raises:
        TrialError: the program failed.
        UserError: it is not installed.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    output_folder = folder / "programs" / settings.name
    with _plain_model_folder(model, processor, checkpoint_dir, folder) as model_folder:
        scored, metadata = benchmark.ask(
            model_folder, folder=output_folder, batch_size=batch_size, device=device.type
        )
    seconds = round(time.perf_counter() - start, 3)
    return scored, {**metadata, "seconds": seconds}


@contextmanager
def _plain_model_folder(
    model: Any, processor: Any, checkpoint_dir: Path | None, folder: Path
) -> Iterator[Path]:
    """Yield a plain folder of the model, and free its device's memory meanwhile."""
    device = next(model.parameters()).device
    model.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    merged_folder = folder / "whole-model"
    try:
        if checkpoint_dir is None:
            plain = merge_adapters(copy.deepcopy(model)) if is_adapted(model) else model
            plain.save_pretrained(merged_folder)
            processor.save_pretrained(merged_folder)
            del plain
        yield checkpoint_dir or merged_folder
    finally:
        shutil.rmtree(merged_folder, ignore_errors=True)
        model.to(device)
