"""Estimate the device memory of a training step, by part, and its operations.

A step runs on fake tensors (step.py); its measurements are combined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chip_core.config.trial import TrialConfig
from chip_core.models.precision import DTYPES, NF4_BYTES
from chip_core.training.footprint.step import (
    FP32,
    Precision,
    RowShape,
    StepMeasurement,
    count_operations,
    measure,
    with_decoder_layers,
)
from chip_core.training.optimizer.masters import PIECE_BYTES

#: Bytes of AdamW's two moments per weight; int8 has an fp32 scale for every 256 weights.
_STATE_BYTES = {"fp32": 2.0 * 4, "int8": 2.0 * (1 + 4 / 256)}


#: The parts of a footprint, in the order in which they are shown.
PARTS = (
    "weights", "masters", "gradients", "states", "reference", "logits", "activations"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes in use at the peak of a step."""

    weights: int
    masters: int
    gradients: int
    states: int
    reference: int  # the old weights, and stored reference values in memory
    logits: int  # of the output head's chunk, at the peak
    activations: int  # everything else: kept for the backward pass, or temporary
    trained: int  # parameters
    frozen: int  # parameters
    gathered_bytes: int  # with sharded weights: bytes that a worker gathers at a time
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by part."""
        return {name: getattr(self, name) for name in PARTS}

    def per_worker(self, workers: int) -> Footprint:
        """Return a worker's footprint if weights, gradients and states are sharded (FSDP2).

        This is computed, not measured: sharded parts are divided by the number of workers, and
        embeddings, output head and two layers are temporarily whole, with their gradients.
        """
        if workers == 1:
            return self
        sharded_parts = ("weights", "masters", "gradients", "states", "reference")
        parts = {name: -(-getattr(self, name) // workers) for name in sharded_parts}
        return replace(self, **parts | {"activations": self.activations + self.gathered_bytes})


def training_precision(config: TrialConfig) -> Precision:
    """Return the precision of a trial's training."""
    dtype = DTYPES[config.model.dtype]
    masters = config.model.dtype != "fp32"
    in_fp32 = config.training.gradients == "fp32"
    return Precision(
        frozen=dtype,
        trained=dtype,
        master=FP32 if masters else 0,
        states=_STATE_BYTES[config.optimizer.states],
        wide=masters and in_fp32,
        piece=PIECE_BYTES if masters and not in_fp32 else None,
        packed=NF4_BYTES if config.model.quantize == "nf4" else None,
    )


def estimate_footprint(
    model_config: Any,
    config: TrialConfig,
    shape: RowShape,
    *,
    stored: bool,
    precision: Precision | None = None,
    sharded: bool = False,
) -> Footprint:
    """Return the footprint of a training step, without allocating the model.

    Args:
        model_config: the model's configuration, of transformers.
        config: the trial.
        shape: of a forward pass.
        stored: whether the reference is read from a store instead of computed in the step.
        precision: None: the trial's own.
        sharded: whether `per_worker` will divide the result: gradients are then sharded as soon as
            they are computed.
    """
    precision = precision or training_precision(config)
    accumulates_gradients = sharded or has_several_passes(config, shape)

    def measure_layers(layers: int) -> StepMeasurement:
        smaller = with_decoder_layers(model_config, layers)
        return measure(
            smaller,
            config,
            shape,
            precision,
            stored=stored,
            accumulates_gradients=accumulates_gradients,
        )

    layers = model_config.get_text_config().num_hidden_layers
    if layers > _SAMPLE_LAYERS + 1 and accumulates_gradients:
        # All layers keep the same number of bytes, and the peak is at the same moment: measuring
        # two models is enough.
        smaller, larger = measure_layers(_SAMPLE_LAYERS), measure_layers(_SAMPLE_LAYERS + 1)
        if larger.pass_bytes > smaller.pass_bytes:
            return _combine(smaller.extrapolate(larger, layers - _SAMPLE_LAYERS), config, precision)
    return _combine(measure_layers(layers), config, precision)


#: Decoder layers of the smaller of the two models from which a larger one is extrapolated.
_SAMPLE_LAYERS = 2


def has_several_passes(config: TrialConfig, shape: RowShape) -> bool:
    """Return whether a batch takes several passes, which accumulate gradients."""
    return config.training.batch_size > shape.pairs * config.engine.workers_per_trial


def _combine(measured: StepMeasurement, config: TrialConfig, precision: Precision) -> Footprint:
    """Return the parts at the peak, which is in a pass or in the update."""
    # On a GPU, AdamW is one kernel without temporary memory. On a CPU it updates one weight at a
    # time, and so it does with 8-bit moments, which are converted to fp32.
    update_bytes = 0 if config.engine.uses_gpu else 2 * FP32 * measured.largest_weight
    if config.optimizer.states == "int8":
        update_bytes = 4 * FP32 * measured.largest_weight
    if precision.piece is not None:
        update_bytes += max(
            min(FP32 * measured.trained, precision.piece), FP32 * measured.largest_weight
        )
    peaks_in_pass = measured.pass_bytes >= update_bytes
    head_bytes, reference_bytes = (
        (measured.head_bytes, measured.reference_bytes) if peaks_in_pass else (0, 0)
    )
    return Footprint(
        weights=measured.weights,
        masters=measured.trained * precision.master,
        gradients=measured.gradients,
        states=round(measured.trained * precision.states),
        reference=measured.copies + reference_bytes,
        logits=head_bytes,
        activations=max(measured.pass_bytes, update_bytes) - head_bytes - reference_bytes,
        trained=measured.trained,
        frozen=measured.frozen,
        gathered_bytes=measured.gathered_bytes,
        notes=measured.notes,
    )


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Floating-point operations; recomputed ones are counted once."""

    step: int  # forward and backward of a pass
    forward: int  # of a pass without gradients


def estimate_operations(model_config: Any, config: TrialConfig, shape: RowShape) -> Operations:
    """Return the operations of a pass, counted kernel by kernel.

    All layers are alike, so they are extrapolated from models with one and two layers.

    Args:
        model_config: the model's configuration, of transformers.
        config: the trial.
        shape: of a forward pass.
    """
    uncheckpointed = config.model_copy(
        update={"engine": config.engine.model_copy(update={"gradient_checkpointing": False})}
    )

    def count_layers(layers: int) -> tuple[int, int]:
        return count_operations(with_decoder_layers(model_config, layers), uncheckpointed, shape)

    layers = model_config.get_text_config().num_hidden_layers
    step, forward = (
        a + (b - a) * (layers - 1) for a, b in zip(count_layers(1), count_layers(2), strict=True)
    )
    return Operations(step=step, forward=forward)
