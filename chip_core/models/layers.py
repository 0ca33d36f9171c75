"""How a model's layers are computed: again in the backward pass, or compiled.

Compiled one by one (torch.compile), norms, products' neighbours and activations become a few
kernels. Sizes are symbols in the code, so one code serves every length of a row, and as layers are
alike, every layer. What is compiled is a layer's own forward: the hooks of DDP and
FSDP2 lie around it, and so does checkpointing, whose backward pass runs the compiled code again.

Each way that layers are called has code of its own: with gradients and without, with adapters and
without, with the encoder trained alone. Of one function torch makes so many codes and no more
(`torch.compiler.config.recompile_limit`); then it computes without, and says so in a log alone.
Here a training ends by that.
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
    """Let layers compute their activations again in the backward pass instead of keeping them.

    transformers does so in training mode alone, which would turn dropout on as well: so only the
    layers themselves are told that they train, and nothing within them.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # transformers before it had that name
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


#: What turns a graph into code: a name that torch.compile knows, or a function.
Backend = str | Callable[..., Any]

INDUCTOR = "inductor"

#: What torch.compile is documented to raise, a class that torch names nowhere else.
_LIMIT_HIT = "FailOnRecompileLimitHit"


@contextmanager
def compiled_layers(model: Any, backend: Backend | None = None) -> Iterator[None]:
    """Compile a decoder's layers for as long as the context is open; nothing of it is left behind.

    Layers that are to be computed again in the backward pass are so around the compiled code.

    Args:
        model: within `packed_attention` where its rows are packed; with what is trained marked so,
            and layers recomputed where they are to be.
        backend: of torch.compile; None: `INDUCTOR`.

    Raises:
        TrialError: the decoder has no layers that are known as such.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    decoder = model.get_decoder()
    layers = [part for part in decoder.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise TrialError(
            f"engine.compile: layers: {type(decoder).__name__} has no layers that transformers "
            "knows as such: write engine.compile: off"
        )
    # Its loop over pieces is of each row's own lengths: no code of one row serves another.
    apart = torch.compiler.disable(packing.attention)  # type: ignore[no-untyped-call]
    ALL_ATTENTION_FUNCTIONS.register(packing.NAME, apart)
    try:
        for layer in layers:
            _compile(layer, backend or INDUCTOR)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        ALL_ATTENTION_FUNCTIONS.register(packing.NAME, packing.attention)
        # Code that was made for these rows may add up otherwise than code made for the next ones.
        torch.compiler.reset()


def _compile(layer: nn.Module, backend: Backend) -> None:
    """Put compiled code over a layer's forward, on the instance."""
    recomputed = layer.gradient_checkpointing
    # transformers' own would lie within the code.
    layer.gradient_checkpointing = False  # type: ignore[assignment]
    made = torch.compile(layer.forward, dynamic=True, backend=backend)
    compiled = partial(_by_code, made)
    layer.forward = partial(_again, compiled) if recomputed else compiled


def _by_code(compiled: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """Call compiled code; end with a line where torch would make no more of it."""
    settings: Any = torch.compiler.config
    failing = settings.fail_on_recompile_limit_hit
    # Here, since each thread has its own, and a backward pass computes layers again in another.
    settings.fail_on_recompile_limit_hit = True
    try:
        return compiled(*given, **options)
    except Exception as error:
        if type(error).__name__ != _LIMIT_HIT:
            raise
        limit = torch.compiler.config.recompile_limit
        raise TrialError(
            f"engine.compile: layers: this training calls its layers in more than {limit} ways, "
            "each of which takes code of its own: write engine.compile: off"
        ) from error
    finally:
        settings.fail_on_recompile_limit_hit = failing


def _again(compiled: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """Keep nothing of a layer but what it is given, where there is to be a backward pass."""
    if not torch.is_grad_enabled():
        return compiled(*given, **options)
    return checkpoint(compiled, *given, use_reentrant=False, preserve_rng_state=False, **options)
