"""Run a training step on torch's fake tensors, which have a shape but no memory.

The model is built from its configuration and runs one step: the image tower, the packed row through
the decoder, the output head, the backward pass. Each storage that an operation allocates is counted
until it is freed. So nothing about autograd has to be guessed: the fake step keeps exactly what a
real one would.

Shapes: T tokens of a packed row, N response positions, D hidden.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from chip_core.config.trial import TrialConfig
from chip_core.models.adapters import attach_adapters
from chip_core.models.layers import recompute_layers
from chip_core.models.packing import Packing, Span, use_packed_attention
from chip_core.models.parts import (
    get_base_decoder,
    is_adapter,
    select_trained_parameters,
    set_trained,
)
from chip_core.models.precision import find_quantized_weights, match_dtype
from chip_core.objectives.parts import VIEWS, view_prefix
from chip_core.objectives.scores import OutputHead, chunk_size, head_scores
from chip_core.training.states import sort_views

FP32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The precision of a training's numbers."""

    frozen: torch.dtype = torch.float32
    trained: torch.dtype = torch.float32  # dtype in which the model computes, also of gradients
    master: int = 0  # bytes per trained weight of the optimizer's master copy
    states: float = 8.0  # bytes of optimizer states per trained weight: AdamW's two in fp32
    wide: bool = False  # whether gradients are accumulated in fp32, in the masters
    piece: int | None = None  # bytes of gradients that an update converts to fp32 at a time
    packed: float | None = None  # bytes of a quantized weight; None: no weight is quantized


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """The tokens of each pair in a forward pass."""

    pairs: int = 1
    image: int  # tokens of the image in the prompt
    text: int  # the prompt's other tokens
    chosen: int
    rejected: int
    tiles: int = 1  # number of tiles of the tower's input size, the whole image included
    separate_images: bool = False  # whether chosen and rejected response have an image each

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.image + self.text

    def response(self, view: str) -> int:
        """Return the tokens of a view's response; a third response counts like the chosen one."""
        return self.rejected if VIEWS[view][1] == "rejected" else self.chosen

    def tokens(self, views: Collection[str]) -> int:
        """Return the tokens of a pass over views: each image's prompt, and its responses."""
        prompts = self.prefix_count(views) * self.prompt
        return self.pairs * (prompts + sum(self.response(view) for view in views))

    def prefix_count(self, views: Collection[str]) -> int:
        """Return the number of prompts, each with an image, that a pair's responses follow."""
        return len({view_prefix(view, separate_images=self.separate_images) for view in views})


@dataclass(frozen=True, kw_only=True)
class StepMeasurement:
    """The measurements of a step. Each number grows linearly with the decoder layers."""

    trained: int  # parameters
    frozen: int  # parameters
    weights: int  # in bytes, as all below except `largest_weight`
    gradients: int
    copies: int
    pass_bytes: int  # at the peak of a pass, in addition to all above
    head_bytes: int  # of that
    reference_bytes: int  # of `pass_bytes`, of the reference
    gathered_bytes: int
    largest_weight: int  # parameters of the largest trained weight
    notes: tuple[str, ...]

    def extrapolate(self, larger: StepMeasurement, times: int) -> StepMeasurement:
        """Return the measurement with `times` more layers, given the one with one more layer."""
        numbers = [field.name for field in fields(self) if field.name not in ("largest", "notes")]
        grown = {
            name: getattr(self, name) + times * (getattr(larger, name) - getattr(self, name))
            for name in numbers
        }
        return replace(self, **grown)


def measure(
    model_config: Any,
    config: TrialConfig,
    shape: RowShape,
    precision: Precision,
    *,
    stored: bool,
    accumulates_gradients: bool,
) -> StepMeasurement:
    """Run a step and return its measurements.

    Args:
        model_config: the model's configuration, of transformers.
        config: the trial.
        shape: of a forward pass.
        precision: the precision of its numbers.
        stored: whether the reference is read from a store instead of computed in the step.
        accumulates_gradients: whether the pass adds to existing gradients, which are not part of
            its own peak.
    """
    with FakeTensorMode():
        return _Step(model_config, config, shape, precision, stored=stored).measure(
            accumulates_gradients=accumulates_gradients
        )


def count_operations(model_config: Any, config: TrialConfig, shape: RowShape) -> tuple[int, int]:
    """Return the floating-point operations of a step, and of its forward pass; see `measure`."""
    with FakeTensorMode():
        step = _Step(model_config, config, shape, Precision(), stored=True)
        with FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            forward: list[int] = []
            step.run(between=lambda: forward.append(counter.get_total_flops()))
        return int(counter.get_total_flops()), int(forward[0])


def with_decoder_layers(model_config: Any, layers: int) -> Any:
    """Return a configuration with fewer decoder layers."""
    shorter = copy.deepcopy(model_config)
    text = shorter.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shorter


class _Step:
    """One forward and backward pass of a model without memory."""

    def __init__(
        self,
        model_config: Any,
        config: TrialConfig,
        shape: RowShape,
        precision: Precision,
        *,
        stored: bool,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        from chip_core.models import own

        own.register()
        self._config, self._shape, self._precision = config, shape, precision
        # With an objective that reads no reference, no copy of the trained weights is kept.
        self._stored = stored or not config.objective.reference_reads
        with unset_fake_temporarily(), torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                model_config, dtype=torch.float32
            ).eval()
            model = attach_adapters(model, config)
        if config.engine.gradient_checkpointing:
            recompute_layers(model)
        trained = {id(parameter) for parameter in set_trained(model, config)}
        _materialize(model, trained, precision)
        self._model = model
        self._trained = set_trained(model, config)
        self._notes: list[str] = []

    def measure(self, *, accumulates_gradients: bool) -> StepMeasurement:
        """Run the step and return its measurements.

        Args:
            accumulates_gradients: whether the pass adds to existing gradients, which are not part
                of its own peak.
        """
        counted_bytes = 0  # bytes in the pass's peak that are already counted as gradients
        gradients: list[Tensor] = []
        for parameter in self._trained:
            # Each gradient is moved to the accumulated ones as soon as it is computed.
            if self._precision.wide or accumulates_gradients:
                wide = self._precision.wide and not accumulates_gradients
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    functools.partial(_take_gradient, gradients if wide else None)
                )
            if not accumulates_gradients:
                counted_bytes += parameter.numel() * (
                    FP32 if self._precision.wide else parameter.itemsize
                )
        tensors = [*self._model.parameters(), *self._model.buffers()]
        with _MemoryTracker(tensors) as memory:
            self.run(memory)
        trained = sum(p.numel() for p in self._trained)
        saved, unpacked = self._quantized_bytes()
        return StepMeasurement(
            trained=trained,
            frozen=sum(p.numel() for p in self._model.parameters()) - trained,
            weights=_total_bytes(tensors) - saved,
            gradients=FP32 * trained if self._precision.wide else _total_bytes(self._trained),
            copies=0 if self._stored else _total_bytes(self._copied_parameters()),
            pass_bytes=memory.peak - counted_bytes + unpacked,
            head_bytes=memory.at_peak.get("logits", 0),
            reference_bytes=memory.at_peak.get("reference", 0),
            gathered_bytes=self._gathered_bytes(),
            largest_weight=max((p.numel() for p in self._trained), default=0),
            notes=tuple(self._notes),
        )

    def _quantized_bytes(self) -> tuple[int, int]:
        """Return the bytes that quantization saves, and those of the largest weight unpacked."""
        if self._precision.packed is None:
            return 0, 0
        sizes = [weight.numel() for weight in find_quantized_weights(self._model)]
        full_itemsize = self._precision.frozen.itemsize
        return round((full_itemsize - self._precision.packed) * sum(sizes)), full_itemsize * max(
            sizes
        )

    def run(
        self, memory: _MemoryTracker | None = None, between: Callable[[], None] = lambda: None
    ) -> None:
        """Run the forward and the backward pass, and call `between` between the two."""
        memory = memory or _MemoryTracker()
        with ExitStack() as stack:
            try:
                stack.enter_context(use_packed_attention(self._model))
            except ValueError as error:
                self._notes.append(f"computed as if prefixes were shared: {error}")
            images = self._input_images(self._config.objective.policy_reads)  # noqa: F841 (is held)
            if not self._stored:
                with torch.no_grad():
                    self._score(memory, self._config.objective.reference_reads)
            loss, hidden = self._score(memory, self._config.objective.policy_reads)
            between()
            memory.part = "logits"  # the head's backward pass comes first
            hidden.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: memory.set_part("activations")
            )
            loss.backward()  # type: ignore[no-untyped-call]

    def _input_images(self, views: Collection[str]) -> list[Tensor]:
        """Return the images of a batch in fp32, as loaded and concatenated for one row."""
        inner = get_base_decoder(self._model)
        images = [self._shape.pairs] * self._shape.prefix_count(views)
        pictures = [
            _fake_pictures(inner.config, count, self._shape.tiles)
            for count in [*images, sum(images)]
        ]
        return [count["pixel_values"] for count in pictures if count is not None]

    def _score(self, memory: _MemoryTracker, views: Collection[str]) -> tuple[Tensor, Tensor]:
        """Return a scalar that depends on all scores of the views, and their hidden states."""
        shape, objective = self._shape, self._config.objective
        view_states = self._hidden_states(views)
        states = torch.cat(view_states)
        memory.part = "reference"
        pairs = shape.pairs
        lengths = [pairs * shape.rejected, pairs * shape.chosen]
        reference_hidden, trained = None, 0
        head = self._head()
        reference_head = None
        if objective.needs_divergence:
            in_bf16 = self._config.reference_precision == "bf16"
            dtype = torch.bfloat16 if in_bf16 else torch.float32
            reference_hidden = torch.empty(sum(lengths), states.shape[-1], dtype=dtype)
            read_copy = torch.empty_like(reference_hidden)  # noqa: F841 (pair by pair, and is held)
            trained = sum(lengths) if objective.trains_chosen_divergence else lengths[0]
            if head.weight.requires_grad and self._stored:
                reference_head = OutputHead(
                    weight=torch.empty_like(head.weight, requires_grad=False)
                )
        memory.part = "logits"
        scores = head_scores(
            states,
            torch.zeros(len(states), dtype=torch.long),
            head,
            reference_hidden=reference_hidden,
            reference_head=reference_head,
            kl_gradients=trained,
            chunk=_logits_chunk(self._config, len(states)),
        )
        memory.part = "activations"
        loss = scores.logps.sum()
        if scores.kl is not None and trained:
            loss = loss + scores.kl[:trained].sum()
        return loss, states

    def _hidden_states(self, views: Collection[str]) -> list[Tensor]:
        """Return the hidden states that predict each view's responses, (N, D)."""
        model = self._model
        spans, positions = self._layout(views)
        embedded = model.get_input_embeddings()(
            torch.zeros(1, _total_length(spans), dtype=torch.long)
        )
        features = self._features(views)
        if features is not None:
            mask = torch.zeros(embedded.shape[:2], dtype=torch.bool).unsqueeze(-1)
            mask = mask.expand_as(embedded)
            embedded = embedded.masked_scatter(mask, features.to(embedded.dtype))
        hidden: Tensor = model.get_decoder()(
            inputs_embeds=embedded,
            attention_mask=torch.zeros(1, 1, 1, 1),
            position_ids=torch.zeros(1, _total_length(spans), dtype=torch.long),
            packing=Packing(spans),
            use_cache=False,
        ).last_hidden_state
        return [hidden[0, part] for part in positions]

    def _layout(self, views: Collection[str]) -> tuple[tuple[Span, ...], list[Tensor]]:
        """Return the spans of the row, and the scored positions of each view."""
        shape = self._shape
        responses_by_prefix: dict[Any, tuple[int, ...]] = {}
        for view in sort_views(views):
            # Without prefix sharing, each response has a pass: the total number of tokens is the
            # same.
            is_separate = self._config.engine.prefix_sharing == "off"
            name = view if is_separate else view_prefix(view, separate_images=shape.separate_images)
            responses_by_prefix[name] = (*responses_by_prefix.get(name, ()), shape.response(view))
        spans = tuple(
            Span(prompt=shape.prompt, responses=responses)
            for responses in responses_by_prefix.values()
            for _ in range(shape.pairs)
        )
        scored = [shape.pairs * shape.response(view) for view in VIEWS if view in views]
        return spans, [torch.zeros(length, dtype=torch.long) for length in scored]

    def _features(self, views: Collection[str]) -> Tensor | None:
        """Return the output of the image tower and the projector for the images, (tokens, D)."""
        inner = get_base_decoder(self._model)
        images = self._shape.pairs * self._shape.prefix_count(views)
        pictures = _fake_pictures(inner.config, images, self._shape.tiles)
        if pictures is None:
            note = "without the image tower's own activations"
            if note not in self._notes:
                self._notes.append(note)
            return None
        pictures["pixel_values"] = match_dtype({"": pictures["pixel_values"]}, self._model)[""]
        outputs = inner.get_image_features(**pictures)
        outputs = getattr(outputs, "pooler_output", outputs)
        if isinstance(outputs, (list, tuple)):
            outputs = torch.cat(list(outputs))
        features: Tensor = outputs.reshape(-1, outputs.shape[-1])
        return features

    def _head(self) -> OutputHead:
        layer = self._model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)

    def _copied_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that a reference computed in the step keeps a copy of."""
        return [
            parameter
            for parameters in select_trained_parameters(self._model, self._config).values()
            for name, parameter in parameters.items()
            if not is_adapter(name)
        ]

    def _gathered_bytes(self) -> int:
        layers = [m for m in self._model.modules() if isinstance(m, _layer_class())]
        largest = max((_total_bytes(layer.parameters()) for layer in layers), default=0)
        layer_parameter_ids = {id(p) for layer in layers for p in layer.parameters()}
        rest = [p for p in self._model.parameters() if id(p) not in layer_parameter_ids]
        return 2 * largest + _total_bytes(rest) + _total_bytes(p for p in rest if p.requires_grad)


def _logits_chunk(config: TrialConfig, positions: int) -> int:
    """Return how many positions' logits are held at a time; all if the GPU's memory decides."""
    engine = config.engine
    if engine.logits_chunk is None and engine.uses_gpu:
        return positions
    return chunk_size(engine.logits_chunk, 1, None)


def _take_gradient(gradients: list[Tensor] | None, parameter: Tensor) -> None:
    """Drop a weight's gradient, or move it to a list in fp32."""
    if gradients is not None:
        gradients.append(torch.empty(parameter.shape))
    parameter.grad = None


def _layer_class() -> Any:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return GradientCheckpointingLayer


def _materialize(model: nn.Module, trained: set[int], precision: Precision) -> None:
    """Replace a model's meta tensors by fake ones in the precision of the training.

    Fake tensors report the CPU as their device, which selects the kernels: the attention kernel
    keeps the same tensors there as a GPU's fused one.
    """
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            dtype = precision.trained if id(parameter) in trained else precision.frozen
            if id(parameter) not in parameters:  # an output head may be the embeddings
                empty = torch.empty(parameter.shape, dtype=dtype)
                parameters[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            setattr(module, name, parameters[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(
                name,
                torch.empty(buffer.shape, dtype=buffer.dtype),
                persistent=name not in module._non_persistent_buffers_set,
            )


def _fake_pictures(model_config: Any, images: int, tiles: int) -> dict[str, Any] | None:
    """Return images as a model's input; None if this needs more than their sizes."""
    kind = model_config.model_type
    side: int = getattr(model_config.vision_config, "image_size", None) or 0
    if kind in ("llava", "muffin"):
        return {"pixel_values": torch.empty(images, 3, side, side)}
    if kind == "llava_next":
        height, width = max(model_config.image_grid_pinpoints, key=lambda size: size[0] * size[1])
        return {
            "pixel_values": torch.empty(images, tiles, 3, side, side),
            "image_sizes": [[height, width]] * images,
        }
    return None


class _MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations allocate, until they are freed."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        """Start; existing tensors are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "activations"  # the part to which new storages are attributed
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._there = {_key(value) for value in there}

    def set_part(self, part: str) -> None:
        """Set the part to which new storages are attributed."""
        self.part = part

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = op(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, Tensor):
                self._add(value)
        return made

    def _add(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = _key(value)
        if key in self._there:
            return
        self._there.add(key)
        size, part = storage.nbytes(), self.part
        self._now[part] = self._now.get(part, 0) + size
        weakref.finalize(storage, self._drop, key, part, size)
        tracked = sum(self._now.values())
        if tracked > self.peak:
            self.peak, self.at_peak = tracked, dict(self._now)

    def _drop(self, key: int, part: str, size: int) -> None:
        self._there.discard(key)
        self._now[part] -= size


def _key(value: Tensor) -> int:
    key: int = value.untyped_storage()._cdata
    return key


def _attention_flops(query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return the operations of attention's two products, as if without a causal mask."""
    batch, heads, queries, size = query
    return int(4 * batch * heads * queries * key[2] * size)


def _attention_backward_flops(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Return the operations of the backward pass: five products for the two of the forward pass."""
    return _attention_flops(query, key) * 5 // 2


_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _total_length(spans: tuple[Span, ...]) -> int:
    return sum(span.prompt + sum(span.responses) for span in spans)


def _total_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
