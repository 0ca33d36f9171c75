"""Estimate whether trials fit the memory of their device and the disk.

What was measured is told first. Else it is reckoned from the number of parameters, which a model
without weights has (torch's meta device): weights, gradients, optimizer and reference, without
activations.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chip_core.config.trial import TrialConfig
from chip_core.utils.errors import TrialError
from orchestrator.cost.machines import machine_of
from orchestrator.cost.rates import Rates
from orchestrator.cost.workload import TrialWork, Workload

_FP32 = 4  # bytes; trained models are written in it, as they are held
_KEPT = 2  # checkpoints of a running training


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many numbers a model has."""

    held: int  # bytes of weights, gradients, optimizer and reference
    saved: int  # bytes of a trained model's folder
    trained: int  # parameters that are trained


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What trials of one kind take of a device's memory."""

    arms: tuple[str, ...]
    bytes: int | None  # None: not known
    measured: bool  # activations and all, and not reckoned without them
    device: int | None  # bytes of the device that one trial may take; None: not known

    @property
    def fits(self) -> bool | None:
        """Whether it does; None where that is not known."""
        if self.bytes is None or self.device is None:
            return None
        return self.bytes <= self.device


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What is written beside the report, and what is free."""

    passes: int | None  # bytes of the reference passes to be made; None: not known
    models: int | None  # of the trained models
    checkpoints: int | None  # of trainings that run at a time
    free: int

    @property
    def known(self) -> int:
        """Bytes of what is known."""
        return (self.passes or 0) + (self.models or 0) + (self.checkpoints or 0)


class MemoryEstimator:
    """Counts parameters, once for each model and what is trained of it."""

    def __init__(self, *, count: bool) -> None:
        """Reckon, or tell only what was measured.

        Args:
            count: whether models may be built to count their parameters, which takes torch.
        """
        self._count = count
        self._known: dict[str, Parameters | None] = {}

    def of(self, config: TrialConfig, *, reference: bool) -> Parameters | None:
        """Return what a trial holds; None where its model's files are not on this machine."""
        if not self._count:
            return None
        names = ("model", "lora", "vision_encoder", "projector", "language_model")
        key = repr([getattr(config, name) for name in names] + [reference])
        if key not in self._known:
            self._known[key] = count_parameters(config, reference=reference)
        return self._known[key]


def count_parameters(config: TrialConfig, *, reference: bool) -> Parameters | None:
    """Return what a trial holds and leaves, from its model's configuration alone.

    Args:
        config: the trial.
        reference: whether the reference is computed, and not read from stores.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from chip_core.models.adapters import attach_adapters
    from chip_core.models.loading import local_folder
    from chip_core.models.memory import bytes_needed
    from chip_core.models.parts import is_adapter, trained_parts

    folder = local_folder(config.model.path)
    try:
        found = AutoConfig.from_pretrained(
            str(folder or config.model.path),
            revision=config.model.revision,
            trust_remote_code=False,
            local_files_only=True,  # planning downloads nothing
        )
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(found, trust_remote_code=False)
            model = attach_adapters(model, config)
    except (OSError, ValueError, TrialError):
        return None
    trained = [
        (name, parameter.numel())
        for part in trained_parts(model, config).values()
        for name, parameter in part.items()
    ]
    count = sum(numbers for _, numbers in trained)
    whole = sum(parameter.numel() for parameter in model.parameters())
    adapted = any(is_adapter(name) for name, _ in trained)
    return Parameters(
        held=bytes_needed(model, config, reference=reference),
        saved=_FP32 * (count if adapted else whole),
        trained=count,
    )


def fits(
    work: Workload,
    rates: Rates,
    estimator: MemoryEstimator,
    *,
    at_once: int | None,
    given: float | None,
) -> list[Fit]:
    """Return what each kind of training takes of its device's memory.

    Args:
        work: what is left of a study.
        rates: what was measured.
        estimator: counts what was not.
        at_once: trials that share this machine; a GPU is not shared, but by its shares.
        given: GiB of a device, in place of this machine's.
    """
    found = []
    for kind, trials in _by_training(work).items():
        first = trials[0]
        measured = rates.size("memory", kind)
        size = None if measured is None else measured[0]
        if size is None:
            reckoned = estimator.of(first.config, reference=not first.offered)
            sharing = first.processes if first.config.engine.parallel == "fsdp" else 1
            size = None if reckoned is None else reckoned.held // sharing
        found.append(
            Fit(
                arms=tuple(dict.fromkeys(each.trial.arm for each in trials)),
                bytes=size,
                measured=measured is not None,
                device=_device(first.config, at_once, given),
            )
        )
    return found


def disk(
    work: Workload, rates: Rates, estimator: MemoryEstimator, *, at_once: int | None, storage: Path
) -> Disk:
    """Return what a study's run writes to the disk beside its report."""
    to_make = [planned for planned in work.planned if planned.state == "to make"]
    sizes = [planned.bytes for planned in to_make]
    models: int | None = 0
    running: list[int] = []
    checkpoints: int | None = 0
    for kind, trials in _by_training(work).items():
        first = trials[0]
        reckoned = estimator.of(first.config, reference=not first.offered)
        measured = rates.size("saved", kind)
        saved = measured[0] if measured else None if reckoned is None else reckoned.saved
        models = None if models is None or saved is None else models + saved * len(trials)
        if first.config.engine.checkpoint_every is not None:
            if saved is None or reckoned is None:
                checkpoints = None
            else:  # weights, and AdamW's two moments of what is trained
                running += [_KEPT * (saved + 2 * _FP32 * reckoned.trained)] * len(trials)
    if checkpoints is not None:
        checkpoints = sum(sorted(running, reverse=True)[: at_once or len(running)])
    above = next(
        path for path in (storage.absolute(), *storage.absolute().parents) if path.exists()
    )
    return Disk(
        passes=None if None in sizes else sum(size or 0 for size in sizes),
        models=models,
        checkpoints=checkpoints,
        free=shutil.disk_usage(above).free,
    )


def _by_training(work: Workload) -> dict[str, list[TrialWork]]:
    found: dict[str, list[TrialWork]] = {}
    for each in work.trials:
        if each.training is not None:
            found.setdefault(each.training, []).append(each)
    return found


def _device(config: TrialConfig, at_once: int | None, given: float | None) -> int | None:
    """Return the bytes of a device that one trial may take."""
    share = config.engine.gpus_per_worker
    part = min(share, 1.0) if share else 1.0
    if given is not None:
        return int(given * 2**30 * part)
    machine = machine_of(config)
    if machine is None:
        return None
    if share or config.engine.device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory * part)
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().total / (at_once or 1))


def memory_words(fit: Fit) -> Iterator[str]:
    """Say what trials take."""
    if fit.bytes is None:
        yield "unknown"
        return
    size = f"{fit.bytes / 2**30:.1f} GiB"
    yield size if fit.measured else f"{size} without activations"
    if fit.device is None:
        yield "of a device that is not here"
        return
    yield f"of {fit.device / 2**30:.1f} GiB a trial"
    if not fit.fits:
        yield "does not fit"
