"""Layers that are computed again in the backward pass, to save memory."""

from __future__ import annotations

from typing import Any


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
