"""What a training step takes of a device's memory, by part, and how much it computes.

A step is made on fake tensors (step.py); what it was seen to take is put together here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chip_core.config.trial import TrialConfig
from chip_core.models.precision import DTYPES, NF4_BYTES
from chip_core.training.footprint.step import (
    FP32,
    Measured,
    Precision,
    RowShape,
    count_operations,
    measure,
    shortened,
)
from chip_core.training.optimizer.masters import PIECE_BYTES

#: Bytes of AdamW's two moments, a weight; int8 has a scale in fp32 for each 256.
_STATES = {"fp32": 2.0 * 4, "int8": 2.0 * (1 + 4 / 256)}


#: The parts of a footprint, in the order in which they are shown.
PARTS = (
    "weights", "masters", "gradients", "states", "reference", "logits", "activations"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes at the fullest moment of a step, and its floating-point operations."""

    weights: int
    masters: int
    gradients: int
    states: int
    reference: int  # the old weights, and what is read of a stored reference
    logits: int  # of the output head's chunk, at that moment
    activations: int  # all else: kept for the backward pass, or for a while
    trained: int  # parameters
    frozen: int  # parameters
    gathered: int  # bytes of what a worker has whole at a time where weights are spread
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by part."""
        return {name: getattr(self, name) for name in PARTS}

    def sharded(self, workers: int) -> Footprint:
        """Return what a worker holds where weights, gradients and states are spread (FSDP2).

        On paper: what is spread is divided, and embeddings, output head and two layers are whole
        for a while, with their gradients.
        """
        if workers == 1:
            return self
        spread = ("weights", "masters", "gradients", "states", "reference")
        parts = {name: -(-getattr(self, name) // workers) for name in spread}
        return replace(self, **parts | {"activations": self.activations + self.gathered})


def precision_of(config: TrialConfig) -> Precision:
    """Return what a trial's training holds its numbers in."""
    held = DTYPES[config.model.dtype]
    masters = config.model.dtype != "fp32"
    wide = config.training.gradients == "fp32"
    return Precision(
        frozen=held,
        trained=held,
        master=FP32 if masters else 0,
        states=_STATES[config.optimizer.states],
        wide=masters and wide,
        piece=PIECE_BYTES if masters and not wide else None,
        packed=NF4_BYTES if config.model.quantize == "nf4" else None,
    )


def footprint(
    found: Any,
    config: TrialConfig,
    shape: RowShape,
    *,
    stored: bool,
    precision: Precision | None = None,
    spread: bool = False,
) -> Footprint:
    """Return what a step of a training takes; nothing of the model's size is held.

    Args:
        found: the model's configuration, of transformers.
        config: the trial.
        shape: of a forward pass.
        stored: whether the reference is read from a store, and not computed in the step.
        precision: None: the trial's own.
        spread: whether it is to be `sharded`: gradients are then spread as they are made.
    """
    precision = precision or precision_of(config)
    beside = spread or accumulates(config, shape)

    def of(layers: int) -> Measured:
        few = shortened(found, layers)
        return measure(few, config, shape, precision, stored=stored, beside=beside)

    layers = found.get_text_config().num_hidden_layers
    if layers > _FEW + 1 and beside:
        # Each layer keeps as much, and the fullest moment is the same one: two tell all.
        few, more = of(_FEW), of(_FEW + 1)
        if more.passing > few.passing:
            return _put_together(few.extended(more, layers - _FEW), config, precision)
    return _put_together(of(layers), config, precision)


#: Decoder layers of the smaller of the models that tell of a larger one.
_FEW = 2


def accumulates(config: TrialConfig, shape: RowShape) -> bool:
    """Return whether a batch takes several passes: gradients are there from those before."""
    return config.training.batch_size > shape.pairs * config.engine.workers_per_trial


def _put_together(measured: Measured, config: TrialConfig, precision: Precision) -> Footprint:
    """Return the parts at the fullest moment: of a pass, or of the update."""
    on_gpu = config.engine.gpus_per_worker > 0 or config.engine.device == "cuda"
    # AdamW is one kernel on a GPU and takes nothing beside; on a CPU a weight at a time, and
    # so with moments in 8 bits, which are widened.
    stepping = 0 if on_gpu else 2 * FP32 * measured.largest
    if config.optimizer.states == "int8":
        stepping = 4 * FP32 * measured.largest
    if precision.piece is not None:
        stepping += max(min(FP32 * measured.trained, precision.piece), FP32 * measured.largest)
    in_pass = measured.passing >= stepping
    of_head, read = (measured.of_head, measured.read) if in_pass else (0, 0)
    return Footprint(
        weights=measured.weights,
        masters=measured.trained * precision.master,
        gradients=measured.gradients,
        states=round(measured.trained * precision.states),
        reference=measured.copies + read,
        logits=of_head,
        activations=max(measured.passing, stepping) - of_head - read,
        trained=measured.trained,
        frozen=measured.frozen,
        gathered=measured.gathered,
        notes=measured.notes,
    )


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Floating-point operations, nothing counted twice that a step computes again."""

    step: int  # forward and backward of a pass
    forward: int  # of a pass without gradients


def operations(found: Any, config: TrialConfig, shape: RowShape) -> Operations:
    """Return the operations of a pass, as its kernels count them.

    Layers are alike, so two models of one and of two layers tell those of all.

    Args:
        found: the model's configuration, of transformers.
        config: the trial.
        shape: of a forward pass.
    """
    plain = config.model_copy(
        update={"engine": config.engine.model_copy(update={"gradient_checkpointing": False})}
    )

    def of(layers: int) -> tuple[int, int]:
        return count_operations(shortened(found, layers), plain, shape)

    layers = found.get_text_config().num_hidden_layers
    step, forward = (a + (b - a) * (layers - 1) for a, b in zip(of(1), of(2), strict=True))
    return Operations(step=step, forward=forward)
