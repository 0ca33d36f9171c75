"""Set how a model's layers are computed: recomputed in the backward pass, or compiled.

With torch.compile per layer, norms, activations and operations next to matrix products become a few
kernels. Sizes are symbolic, so the same code serves every row length, and, because layers are
alike, every layer. Only a layer's own forward is compiled: the hooks of DDP and FSDP2 wrap it, and
so does checkpointing, whose backward pass runs the compiled code again.

Each way to call a layer has its own code: with and without gradients, with and without adapters,
with the encoder trained alone. torch compiles a function only a limited number of times
(`torch.compiler.config.recompile_limit`); then it runs the function uncompiled and only logs this.
Here, it ends the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from chip_core.models import packing
from chip_core.utils.errors import TrialError


def recompute_layers(model: Any) -> None:
    """Recompute activations of layers in the backward pass instead of keeping them.

    transformers does so only in training mode, which would turn dropout on as well: so only the
    layers themselves are set to training mode, not the modules within them.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # the name in earlier transformers
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name in ("dropout", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)


def keep_activations(model: Any) -> None:
    """Undo `recompute_layers`: generation keeps its keys and values."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
    model.eval()


#: A backend of torch.compile: a name that it knows, or a function.
Backend = str | Callable[..., Any]

INDUCTOR = "inductor"

#: The exception documented for torch.compile; torch exposes its class nowhere else.
_RECOMPILE_LIMIT_ERROR = "FailOnRecompileLimitHit"


@contextmanager
def compile_layers(model: Any, backend: Backend | None = None) -> Iterator[None]:
    """Compile a decoder's layers while the context is open, and restore them afterwards.

    Layers that are recomputed in the backward pass run the compiled code again.

    Args:
        model: within `use_packed_attention` if its rows are packed; with the trained parameters
            marked, and recomputation set.
        backend: of torch.compile; None: `INDUCTOR`.

    Raises:
        TrialError: the decoder has no known layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    decoder = model.get_decoder()
    layers = [
        module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise TrialError(
            f"engine.compile: layers: {type(decoder).__name__} has no layers that transformers "
            "marks as layers: write engine.compile: off"
        )
    # Its loop over pieces depends on each row's lengths: code for one row serves no other.
    uncompiled_attention = torch.compiler.disable(packing.attention)  # type: ignore[no-untyped-call]
    ALL_ATTENTION_FUNCTIONS.register(packing.PACKED_ATTENTION, uncompiled_attention)
    try:
        for layer in layers:
            _compile_layer(layer, backend or INDUCTOR)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        ALL_ATTENTION_FUNCTIONS.register(packing.PACKED_ATTENTION, packing.attention)
        # Code compiled for these rows may add in another order than code compiled for the next
        # ones.
        torch.compiler.reset()


def _compile_layer(layer: nn.Module, backend: Backend) -> None:
    """Replace a layer's forward by compiled code, on the instance."""
    is_recomputed = layer.gradient_checkpointing
    # transformers' own checkpointing would be inside the compiled code.
    layer.gradient_checkpointing = False  # type: ignore[assignment]
    compiled_forward = torch.compile(layer.forward, dynamic=True, backend=backend)
    compiled = partial(_call_compiled, compiled_forward)
    layer.forward = partial(_call_checkpointed, compiled) if is_recomputed else compiled


def _call_compiled(compiled: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call compiled code; raise an error of one line if torch refuses to compile again."""
    settings: Any = torch.compiler.config
    previous = settings.fail_on_recompile_limit_hit
    # Set here, since each thread has its own setting, and a backward pass recomputes layers in
    # another.
    settings.fail_on_recompile_limit_hit = True
    try:
        return compiled(*args, **options)
    except Exception as error:
        if type(error).__name__ != _RECOMPILE_LIMIT_ERROR:
            raise
        limit = torch.compiler.config.recompile_limit
        raise TrialError(
            f"engine.compile: layers: this training calls its layers in more than {limit} ways, "
            "and each way is compiled separately: write engine.compile: off"
        ) from error
    finally:
        settings.fail_on_recompile_limit_hit = previous


def _call_checkpointed(compiled: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Keep only a layer's inputs for the backward pass, if there is one."""
    if not torch.is_grad_enabled():
        return compiled(*args, **options)
    return checkpoint(compiled, *args, use_reentrant=False, preserve_rng_state=False, **options)
