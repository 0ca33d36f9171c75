"""One step of a training on torch's fake tensors, which have a shape and no memory.

The model is built from its configuration and one step is made with it: the image tower, the packed
row through the decoder, the output head, the backward pass. Each storage that an operation makes
counts from its making to its end. So nothing is guessed of what autograd keeps: what the step would
hold, it holds here.

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
from chip_core.models.packing import Packing, Span, packed_attention
from chip_core.models.parts import get_base_decoder, is_adapter, set_trained, trained_parts
from chip_core.models.precision import match_dtype, quantized_weights
from chip_core.objectives.head import OutputHead, chunk_size, head_scores
from chip_core.objectives.parts import VIEWS, view_prefix
from chip_core.training.states import lying

FP32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a training holds its numbers in."""

    frozen: torch.dtype = torch.float32
    trained: torch.dtype = torch.float32  # as the model computes with them; so are gradients
    master: int = 0  # bytes of a trained weight that the optimizer holds beside the model's
    states: float = 8.0  # bytes of the optimizer's states, a trained weight: AdamW's two in fp32
    wide: bool = False  # whether gradients are added up in fp32, beside the masters
    piece: int | None = None  # bytes of gradients that an update widens at a time; None: none
    packed: float | None = None  # bytes of a weight that is quantized; None: none is


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """The tokens of each pair in a forward pass."""

    pairs: int = 1
    image: int  # tokens of the image in the prompt
    text: int  # the prompt's other tokens
    chosen: int
    rejected: int
    tiles: int = 1  # pictures of the tower's size that an image is cut into, itself included
    sides: bool = False  # whether chosen and rejected response have an image each

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.image + self.text

    def response(self, view: str) -> int:
        """Return the tokens of a view's response; a third one is taken to be as the chosen one."""
        return self.rejected if VIEWS[view][1] == "rejected" else self.chosen

    def tokens(self, views: Collection[str]) -> int:
        """Return all that a pass over views computes: each image's prompt, and its responses."""
        prompts = self.behind(views) * self.prompt
        return self.pairs * (prompts + sum(self.response(view) for view in views))

    def behind(self, views: Collection[str]) -> int:
        """Return how many prompts, each with an image, a pair's responses lie behind."""
        return len({view_prefix(view, separate_images=self.sides) for view in views})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a step was seen to take. Each number grows by as much with every decoder layer."""

    trained: int  # parameters
    frozen: int  # parameters
    weights: int  # bytes, as all below but the last
    gradients: int
    copies: int
    passing: int  # at the fullest moment of a pass, beside all above
    of_head: int  # of that
    read: int  # of that, of the reference
    gathered: int
    largest: int  # parameters of the largest trained weight
    notes: tuple[str, ...]

    def extended(self, more: Measured, times: int) -> Measured:
        """Return what it is with so many layers more, given what it is with one more."""
        numbers = [each.name for each in fields(self) if each.name not in ("largest", "notes")]
        grown = {
            name: getattr(self, name) + times * (getattr(more, name) - getattr(self, name))
            for name in numbers
        }
        return replace(self, **grown)


def measure(
    found: Any,
    config: TrialConfig,
    shape: RowShape,
    precision: Precision,
    *,
    stored: bool,
    beside: bool,
) -> Measured:
    """Make a step and return what it takes.

    Args:
        found: the model's configuration, of transformers.
        config: the trial.
        shape: of a forward pass.
        precision: what it holds its numbers in.
        stored: whether the reference is read from a store, and not computed in the step.
        beside: whether the pass adds to gradients that are there, beside its own peak.
    """
    with FakeTensorMode():
        return _Step(found, config, shape, precision, stored=stored).measured(beside=beside)


def count_operations(found: Any, config: TrialConfig, shape: RowShape) -> tuple[int, int]:
    """Return the floating-point operations of a step, and of its forward pass; as `measure`."""
    with FakeTensorMode():
        step = _Step(found, config, shape, Precision(), stored=True)
        with FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            forward: list[int] = []
            step.run(between=lambda: forward.append(counter.get_total_flops()))
        return int(counter.get_total_flops()), int(forward[0])


def shortened(found: Any, layers: int) -> Any:
    """Return a configuration of fewer decoder layers."""
    made = copy.deepcopy(found)
    text = made.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return made


class _Step:
    """One forward and backward pass of a model that has no memory."""

    def __init__(
        self,
        found: Any,
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
        # An objective that reads nothing of a reference keeps no copy of what is trained.
        self._stored = stored or not config.objective.reference_reads
        with unset_fake_temporarily(), torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(found, dtype=torch.float32).eval()
            model = attach_adapters(model, config)
        if config.engine.gradient_checkpointing:
            recompute_layers(model)
        trained = {id(parameter) for parameter in set_trained(model, config)}
        _held(model, trained, precision)
        self._model = model
        self._trained = set_trained(model, config)
        self._notes: list[str] = []

    def measured(self, *, beside: bool) -> Measured:
        """Make the step and return what it takes.

        Args:
            beside: whether the pass adds to gradients that are there, beside its own peak.
        """
        own = 0  # bytes of gradients that count as such and are in the pass's peak
        made: list[Tensor] = []
        for parameter in self._trained:
            if self._precision.wide or beside:  # it goes to what is held, as soon as it is made
                wide = self._precision.wide and not beside
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    functools.partial(_take, made if wide else None)
                )
            if not beside:
                own += parameter.numel() * (FP32 if self._precision.wide else parameter.itemsize)
        there = [*self._model.parameters(), *self._model.buffers()]
        with _Memory(there) as memory:
            self.run(memory)
        trained = sum(p.numel() for p in self._trained)
        saved, unpacked = self._quantized()
        return Measured(
            trained=trained,
            frozen=sum(p.numel() for p in self._model.parameters()) - trained,
            weights=_bytes(there) - saved,
            gradients=FP32 * trained if self._precision.wide else _bytes(self._trained),
            copies=0 if self._stored else _bytes(self._copied()),
            passing=memory.peak - own + unpacked,
            of_head=memory.at_peak.get("logits", 0),
            read=memory.at_peak.get("reference", 0),
            gathered=self._gathered(),
            largest=max((p.numel() for p in self._trained), default=0),
            notes=tuple(self._notes),
        )

    def _quantized(self) -> tuple[int, int]:
        """Return the bytes that quantized weights save, and those of the largest one unpacked."""
        if self._precision.packed is None:
            return 0, 0
        sizes = [weight.numel() for weight in quantized_weights(self._model)]
        whole = self._precision.frozen.itemsize
        return round((whole - self._precision.packed) * sum(sizes)), whole * max(sizes)

    def run(
        self, memory: _Memory | None = None, between: Callable[[], None] = lambda: None
    ) -> None:
        """Make the pass and its backward, and between the two what is asked."""
        memory = memory or _Memory()
        with ExitStack() as stack:
            try:
                stack.enter_context(packed_attention(self._model))
            except ValueError as error:
                self._notes.append(f"computed as if it shared prefixes: {error}")
            given = self._given(self._config.objective.policy_reads)  # noqa: F841 (is held)
            if not self._stored:
                with torch.no_grad():
                    self._scored(memory, self._config.objective.reference_reads)
            loss, hidden = self._scored(memory, self._config.objective.policy_reads)
            between()
            memory.part = "logits"  # the head's backward is the first
            hidden.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: memory.name("activations")
            )
            loss.backward()  # type: ignore[no-untyped-call]

    def _given(self, views: Collection[str]) -> list[Tensor]:
        """Return the images of a batch as they come, in fp32, and those of one row together."""
        inner = get_base_decoder(self._model)
        images = [self._shape.pairs] * self._shape.behind(views)
        made = [_pictures(inner.config, each, self._shape.tiles) for each in [*images, sum(images)]]
        return [each["pixel_values"] for each in made if each is not None]

    def _scored(self, memory: _Memory, views: Collection[str]) -> tuple[Tensor, Tensor]:
        """Return a number that depends on all that is read of views, and the states under it."""
        shape, objective = self._shape, self._config.objective
        by_view = self._states(views)
        states = torch.cat(by_view)
        memory.part = "reference"
        pairs = shape.pairs
        lengths = [pairs * shape.rejected, pairs * shape.chosen]
        with_reference, trained = None, 0
        head = self._head()
        other = None
        if objective.needs_divergence:
            low = self._config.reference_precision == "bf16"
            dtype = torch.bfloat16 if low else torch.float32
            with_reference = torch.empty(sum(lengths), states.shape[-1], dtype=dtype)
            as_read = torch.empty_like(with_reference)  # noqa: F841 (pair by pair, and is held)
            trained = sum(lengths) if objective.trains_chosen_divergence else lengths[0]
            if head.weight.requires_grad and self._stored:
                other = OutputHead(weight=torch.empty_like(head.weight, requires_grad=False))
        memory.part = "logits"
        scores = head_scores(
            states,
            torch.zeros(len(states), dtype=torch.long),
            head,
            reference_hidden=with_reference,
            reference_head=other,
            kl_gradients=trained,
            chunk=_chunk(self._config, len(states)),
        )
        memory.part = "activations"
        loss = scores.logps.sum()
        if scores.kl is not None and trained:
            loss = loss + scores.kl[:trained].sum()
        return loss, states

    def _states(self, views: Collection[str]) -> list[Tensor]:
        """Return the hidden states that predict each view's responses, (N, D)."""
        model = self._model
        spans, places = self._layout(views)
        embedded = model.get_input_embeddings()(torch.zeros(1, _length(spans), dtype=torch.long))
        features = self._features(views)
        if features is not None:
            mask = torch.zeros(embedded.shape[:2], dtype=torch.bool).unsqueeze(-1)
            mask = mask.expand_as(embedded)
            embedded = embedded.masked_scatter(mask, features.to(embedded.dtype))
        hidden: Tensor = model.get_decoder()(
            inputs_embeds=embedded,
            attention_mask=torch.zeros(1, 1, 1, 1),
            position_ids=torch.zeros(1, _length(spans), dtype=torch.long),
            packing=Packing(spans),
            use_cache=False,
        ).last_hidden_state
        return [hidden[0, part] for part in places]

    def _layout(self, views: Collection[str]) -> tuple[tuple[Span, ...], list[Tensor]]:
        """Return the spans of the row, and the places that are scored, by view."""
        shape = self._shape
        together: dict[Any, tuple[int, ...]] = {}
        for view in lying(views):
            # Without prefix sharing a pass a response: as many tokens.
            alone = self._config.engine.prefix_sharing == "off"
            name = view if alone else view_prefix(view, separate_images=shape.sides)
            together[name] = (*together.get(name, ()), shape.response(view))
        spans = tuple(
            Span(prompt=shape.prompt, responses=responses)
            for responses in together.values()
            for _ in range(shape.pairs)
        )
        scored = [shape.pairs * shape.response(view) for view in VIEWS if view in views]
        return spans, [torch.zeros(length, dtype=torch.long) for length in scored]

    def _features(self, views: Collection[str]) -> Tensor | None:
        """Return what the image tower and the projector make of the images, (tokens, D)."""
        inner = get_base_decoder(self._model)
        images = self._shape.pairs * self._shape.behind(views)
        given = _pictures(inner.config, images, self._shape.tiles)
        if given is None:
            note = "without the image tower's own activations"
            if note not in self._notes:
                self._notes.append(note)
            return None
        given["pixel_values"] = match_dtype({"": given["pixel_values"]}, self._model)[""]
        made = inner.get_image_features(**given)
        made = getattr(made, "pooler_output", made)
        if isinstance(made, (list, tuple)):
            made = torch.cat(list(made))
        features: Tensor = made.reshape(-1, made.shape[-1])
        return features

    def _head(self) -> OutputHead:
        layer = self._model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)

    def _copied(self) -> list[nn.Parameter]:
        """Return what a reference that is computed in the step keeps a copy of."""
        return [
            parameter
            for parameters in trained_parts(self._model, self._config).values()
            for name, parameter in parameters.items()
            if not is_adapter(name)
        ]

    def _gathered(self) -> int:
        layers = [m for m in self._model.modules() if isinstance(m, _layer_class())]
        largest = max((_bytes(layer.parameters()) for layer in layers), default=0)
        within = {id(p) for layer in layers for p in layer.parameters()}
        rest = [p for p in self._model.parameters() if id(p) not in within]
        return 2 * largest + _bytes(rest) + _bytes(p for p in rest if p.requires_grad)


def _chunk(config: TrialConfig, positions: int) -> int:
    """Return how many positions' logits are held together; by a GPU's memory: taken to be all."""
    wanted = config.engine.logits_chunk
    gpu = config.engine.gpus_per_worker > 0 or config.engine.device == "cuda"
    return positions if wanted is None and gpu else chunk_size(wanted, 1, None)


def _take(held: list[Tensor] | None, parameter: Tensor) -> None:
    """Take a gradient from beside its weight; into a list, in fp32, or to what is there."""
    if held is not None:
        held.append(torch.empty(parameter.shape))
    parameter.grad = None


def _layer_class() -> Any:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return GradientCheckpointingLayer


def _held(model: nn.Module, trained: set[int], precision: Precision) -> None:
    """Take a model from the meta device to fake tensors, each in the precision that it is held in.

    Fake tensors say that they lie on the CPU, which decides the kernels: attention's keeps there
    what a GPU's fused one keeps.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            dtype = precision.trained if id(parameter) in trained else precision.frozen
            if id(parameter) not in made:  # an output head may be the embeddings
                empty = torch.empty(parameter.shape, dtype=dtype)
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(
                name,
                torch.empty(buffer.shape, dtype=buffer.dtype),
                persistent=name not in module._non_persistent_buffers_set,
            )


def _pictures(found: Any, images: int, tiles: int) -> dict[str, Any] | None:
    """Return images as a model takes them; None where that needs more than their sizes."""
    kind = found.model_type
    side: int = getattr(found.vision_config, "image_size", None) or 0
    if kind in ("llava", "muffin"):
        return {"pixel_values": torch.empty(images, 3, side, side)}
    if kind == "llava_next":
        height, width = max(found.image_grid_pinpoints, key=lambda size: size[0] * size[1])
        return {
            "pixel_values": torch.empty(images, tiles, 3, side, side),
            "image_sizes": [[height, width]] * images,
        }
    return None


class _Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, from their making to their end."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        """Begin with what is there, which does not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "activations"  # what is made now belongs to
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._there = {_key(value) for value in there}

    def name(self, part: str) -> None:
        """Say what is made from here on belongs to."""
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
        held = sum(self._now.values())
        if held > self.peak:
            self.peak, self.at_peak = held, dict(self._now)

    def _drop(self, key: int, part: str, size: int) -> None:
        self._there.discard(key)
        self._now[part] -= size


def _key(value: Tensor) -> int:
    key: int = value.untyped_storage()._cdata
    return key


def _attention_flops(query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return the operations of attention's two products; what a causal mask hides counts too."""
    batch, heads, queries, size = query
    return int(4 * batch * heads * queries * key[2] * size)


def _attention_backward_flops(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Return those of the backward pass: five products for the forward's two."""
    return _attention_flops(query, key) * 5 // 2


_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _length(spans: tuple[Span, ...]) -> int:
    return sum(span.prompt + sum(span.responses) for span in spans)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
