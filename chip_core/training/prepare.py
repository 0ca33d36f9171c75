"""The pairs and the device of a training or reference pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.checks import ProcessorChecker
from chip_core.data.formats.extra_columns import RowRequirements, row_requirements
from chip_core.data.preferences import Pairs, load_pairs
from chip_core.data.rejected_images import find_strategy
from chip_core.data.source import SHAPES
from chip_core.models import loading
from chip_core.results import Progress
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import current_workers


def load_checked_pairs(
    config: TrialConfig,
    report: Callable[[Progress], None],
    requirements: RowRequirements | None = None,
) -> Pairs:
    """Load the pairs, and report the rows checked about once a second.

    Args:
        config: the trial.
        report: called with the progress of the check.
        requirements: the requirements on each row; None: those of the trial's objective.

    Raises:
        TrialError: the data or the model's processor cannot be read, or a row is bad and
            `on_bad_row` is `fail`.
    """
    last_report = time.monotonic()

    def on_row(done: int, total: int) -> None:
        nonlocal last_report
        if time.monotonic() - last_report >= 1.0:
            last_report = time.monotonic()
            report(Progress(phase="check data", done=done, total=total))

    needs_given = find_strategy(config.rejected_image.strategy).traits.needs_given
    # The embedded world's pairs need no check by the processor.
    has_files = config.data.source != SHAPES
    return load_pairs(
        config.data,
        on_row,
        rejected_images=needs_given and config.objective.needs_rejected_image,
        requirements=row_requirements(config.objective) if requirements is None else requirements,
        model=ProcessorChecker(loading.load_processor_only(config.model)) if has_files else None,
        processes=current_workers().size,
    )


def resolve_device(config: TrialConfig) -> torch.device:
    """Return the device that `engine.device` names on this machine.

    Raises:
        TrialError: it is cuda, and there is no GPU, or none that computes in `model.dtype`.
    """
    requested = config.engine.device
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested != "cuda":
        return torch.device(requested)
    if not torch.cuda.is_available():
        raise TrialError("engine.device is cuda, and torch finds no GPU: choose auto or cpu")
    if config.model.dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrialError(
            f"model.dtype is bf16, and {torch.cuda.get_device_name()} does not compute in it: "
            "write model.dtype: fp32, or take a GPU of NVIDIA's Ampere or later"
        )
    # Of several GPUs, the one that was set for this process.
    return torch.device(requested, torch.cuda.current_device())
