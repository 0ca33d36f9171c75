"""A multimodal model's three parts, found the same way in every family."""

from __future__ import annotations

from typing import Any

from torch import nn

from chip_core.config import TrialConfig


def named_parts(model: Any) -> dict[str, dict[str, nn.Parameter]]:
    """Return the parameters of `vision_encoder`, `language_model` and `projector`, by name.

    The projector is what is neither of the others; the output head is the language model's.
    """
    vision = {id(parameter) for parameter in model.get_encoder(modality="image").parameters()}
    language = {
        id(parameter)
        for module in (model.get_decoder(), model.get_output_embeddings())
        for parameter in module.parameters()
    }
    parts: dict[str, dict[str, nn.Parameter]] = {
        "vision_encoder": {},
        "projector": {},
        "language_model": {},
    }
    for name, parameter in model.named_parameters():
        if id(parameter) in vision:
            parts["vision_encoder"][name] = parameter
        elif id(parameter) in language:
            parts["language_model"][name] = parameter
        else:
            parts["projector"][name] = parameter
    return parts


def set_trained(model: Any, config: TrialConfig) -> list[nn.Parameter]:
    """Mark which parameters are trained and return them; the others get no gradient."""
    trained: list[nn.Parameter] = []
    for part, parameters in named_parts(model).items():
        train = getattr(config, part) != "frozen"
        for parameter in parameters.values():
            parameter.requires_grad_(train)
            if train:
                trained.append(parameter)
    return trained
