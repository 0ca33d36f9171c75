"""A multimodal model's three parts, found the same way in every family."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from chip_core.config.trial import TrialConfig
from chip_core.utils.errors import TrialError

Part = Literal["vision_encoder", "projector", "language_model"]

#: What some families of transformers (Qwen-VL) keep within their vision tower though it is the
#: projector. A tower of this package's own names such parts itself, as `projector_parts`.
_PROJECTORS_WITHIN = ("merger", "deepstack_merger_list")


def named_parts(model: Any) -> dict[Part, dict[str, nn.Parameter]]:
    """Return the parameters of `vision_encoder`, `projector` and `language_model`, by name.

    The projector is what is neither of the others; the output head is the language model's, and
    so are the adapters on its layers.
    """
    tower = model.get_encoder(modality="image")
    projectors = {*_PROJECTORS_WITHIN, *getattr(tower, "projector_parts", ())}
    vision = {
        id(parameter)
        for name, parameter in tower.named_parameters()
        if projectors.isdisjoint(name.split("."))
    }
    language = {
        id(parameter)
        for module in (model.get_decoder(), model.get_output_embeddings())
        for parameter in module.parameters()
    }
    parts: dict[Part, dict[str, nn.Parameter]] = {
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


def without_head(model: Any) -> Any:
    """Return the part of a model that ends in hidden states: all of it but the output head.

    Raises:
        TrialError: the model has no such part.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    inner = getattr(base, "model", None)
    if not isinstance(inner, nn.Module):
        raise TrialError(
            f"{type(base).__name__} has no `model` that ends in hidden states: such a model cannot "
            "be trained; docs/models.md has those that can"
        )
    return inner


def is_adapter(name: str) -> bool:
    """Return whether a parameter's name is a low-rank adapter's."""
    return ".lora_" in name


def trained_parts(model: Any, config: TrialConfig) -> dict[Part, dict[str, nn.Parameter]]:
    """Return the parameters that a configuration trains, by part and name; no part is empty."""
    trained: dict[Part, dict[str, nn.Parameter]] = {}
    for part, parameters in named_parts(model).items():
        mode = getattr(config, part)
        if mode == "frozen":
            continue
        kept = {
            name: parameter
            for name, parameter in parameters.items()
            if mode != "lora" or is_adapter(name)
        }
        if kept:
            trained[part] = kept
    return trained


def set_trained(
    model: Any, config: TrialConfig, *, encoder_alone: bool = False
) -> list[nn.Parameter]:
    """Mark which parameters are trained and return them; the others get no gradient.

    Args:
        model: the policy.
        config: says which parts are trained.
        encoder_alone: whether a staged training is still at its encoder.
    """
    trained = [
        parameter
        for part, parameters in trained_parts(model, config).items()
        if part == "vision_encoder" or not encoder_alone
        for parameter in parameters.values()
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained
