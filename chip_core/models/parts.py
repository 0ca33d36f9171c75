"""Find a multimodal model's three parts in every family alike, and give its tower's output back.

A frozen vision tower's output is recorded once, and injected instead of computing it again. Only
what the family's own code reads of it is kept (of LLaVA's hidden states one layer), so that
selection, projector and packing work as before, with their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.models.precision import match_dtype
from chip_core.utils.errors import TrialError

Part = Literal["vision_encoder", "projector", "language_model"]

#: Projectors that some families of transformers (Qwen-VL) keep within their vision tower. A tower
#: of this package names such parts in `projector_parts`.
_TOWER_PROJECTORS = ("merger", "deepstack_merger_list")

#: An attribute of this package's towers, `last_layer_unread`: the modules of the last layer whose
#: output the model does not use.
_UNREAD_ATTRIBUTE = "last_layer_unread"

#: Layers whose first input is hidden states and whose only output is hidden states: those of LLaVA
#: and related models.
_TENSOR_LAYERS = ("CLIPEncoderLayer", "SiglipEncoderLayer")


def group_parameters(model: Any) -> dict[Part, dict[str, nn.Parameter]]:
    """Return the parameters of `vision_encoder`, `projector` and `language_model`, by name.

    Everything that belongs to neither of the other two is the projector's. The output head is the
    language model's, and so are the adapters on its layers.
    """
    tower = model.get_encoder(modality="image")
    projectors = {*_TOWER_PROJECTORS, *getattr(tower, "projector_parts", ())}
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


def find_tower_layers(model: Any) -> dict[str, nn.Module]:
    """Return the vision encoder's layers by their names in the base model, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    tower_ids = {id(module) for module in base.get_encoder(modality="image").modules()}
    return {
        name: module
        for name, module in base.named_modules()
        if id(module) in tower_ids and isinstance(module, GradientCheckpointingLayer)
    }


def find_unread_modules(model: Any) -> list[str]:
    """Return the modules of the vision encoder's layers that are unused and get no gradient.

    LLaVA and related models read a hidden state before the last (`vision_feature_layer`): the
    layers after it by name, otherwise modules of the last layer that a tower names itself.
    """
    names = list(find_tower_layers(model))
    tower = model.get_encoder(modality="image")
    feature_layer = getattr(model.config, "vision_feature_layer", None)
    if feature_layer is not None:
        # State 0 is the input of the first layer, and k the output of the k-th.
        states = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
        return names[max(state % (len(names) + 1) for state in states) :]
    return [
        f"{name}.{part}" for name in names[-1:] for part in getattr(tower, _UNREAD_ATTRIBUTE, ())
    ]


def skip_unread_layers(model: Any) -> None:
    """Replace the tower's layers whose output is unused by ones that return their input.

    Nothing reads that output (`find_unread_modules`): LLaVA reads its tower's last hidden state but
    one. Their weights stay in place, and are saved with the others.

    Args:
        model: without adapters; copies of it skip them too.
    """
    layers = find_tower_layers(model)
    for name in find_unread_modules(model):
        kind = type(layers.get(name))
        # A class of the same name in a model's own code may return something else.
        if kind.__module__.startswith("transformers.") and kind.__name__ in _TENSOR_LAYERS:
            layers[name].forward = _identity_forward


def _identity_forward(hidden_states: Tensor, *others: Any, **options: Any) -> Tensor:
    return hidden_states


def describe_unread_modules(model: Any, config: TrialConfig) -> str | None:
    """Return a note on the vision encoder's layers that get no gradient."""
    unread = [] if config.vision_encoder == "frozen" else find_unread_modules(model)
    if not unread:
        return None
    missing = "no adapter" if config.vision_encoder == "lora" else "no gradient"
    return (
        f"vision_encoder is {config.vision_encoder}, but the model does not read all of it: "
        f"{', '.join(unread)} {'gets' if len(unread) == 1 else 'get'} {missing}"
    )


def find_tower_linears(model: Any) -> list[str]:
    """Return the full names of the linear layers of the vision encoder's attention and MLPs.

    Those with unused output are left out: their adapters would get no gradient.

    Raises:
        TrialError: there are none.
    """
    layers = tuple(f"{name}." for name in find_tower_layers(model))
    unread = tuple(f"{name}." for name in find_unread_modules(model))
    names = [
        name
        for name in _find_linears(model, "vision_encoder")
        if name.startswith(layers) and not f"{name}.".startswith(unread)
    ]
    if not names:
        raise TrialError(
            "vision_encoder: lora: it has no linear layer that the model reads: write frozen, or "
            "trained"
        )
    return names


def find_projector_linears(model: Any) -> list[str]:
    """Return the full names of the projector's linear layers.

    Raises:
        TrialError: there are none.
    """
    names = _find_linears(model, "projector")
    if not names:
        raise TrialError("projector: lora: it has no linear layer: write frozen, or trained")
    return names


def _find_linears(model: Any, part: Part) -> list[str]:
    weights = {id(parameter) for parameter in group_parameters(model)[part].values()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) in weights
    ]


def get_base_decoder(model: Any) -> Any:
    """Return the part of a model that ends in hidden states: everything but the output head.

    Raises:
        TrialError: the model has no such part.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    inner = getattr(base, "model", None)
    if not isinstance(inner, nn.Module):
        raise TrialError(
            f"{type(base).__name__} has no `model` that ends in hidden states: such a model "
            "cannot be trained; docs/models.md lists those that can"
        )
    return inner


def is_adapter(name: str) -> bool:
    """Return whether a parameter's name is a low-rank adapter's."""
    return ".lora_" in name


def select_trained_parameters(
    model: Any, config: TrialConfig
) -> dict[Part, dict[str, nn.Parameter]]:
    """Return the parameters that a configuration trains, by part and name; no part is empty."""
    trained: dict[Part, dict[str, nn.Parameter]] = {}
    for part, parameters in group_parameters(model).items():
        mode = getattr(config, part)
        if mode == "frozen":
            continue
        selected = {
            name: parameter
            for name, parameter in parameters.items()
            if mode != "lora" or is_adapter(name)
        }
        if selected:
            trained[part] = selected
    return trained


def set_trained(
    model: Any, config: TrialConfig, *, encoder_alone: bool = False
) -> list[nn.Parameter]:
    """Mark the trained parameters and return them; the others get no gradient.

    Args:
        model: the policy.
        config: says which parts are trained.
        encoder_alone: whether a staged training is still in its encoder stage.
    """
    trained = [
        parameter
        for part, parameters in select_trained_parameters(model, config).items()
        if part == "vision_encoder" or not encoder_alone
        for parameter in parameters.values()
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


#: Field of the output -> (rows, …): the images' tiles or patches, concatenated. An entry of a list
#: is `FIELD:INDEX`.
Features = Mapping[str, Tensor]


def get_tower(model: Any) -> Any:
    """Return a model's vision tower."""
    return model.get_encoder(modality="image")


def is_tower_frozen(model: Any, config: TrialConfig) -> bool:
    """Return whether nothing within the tower is ever trained; a projector may be within it."""
    tower_ids = {id(parameter) for parameter in get_tower(model).parameters()}
    return not any(
        id(parameter) in tower_ids
        for part, parameters in group_parameters(model).items()
        if getattr(config, part) != "frozen"
        for parameter in parameters.values()
    )


@torch.no_grad()
def compute_tower_features(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of the tower's output for images that the model reads.

    Args:
        model: with or without adapters.
        inputs: pixel values and the like, as the model takes them, without the tokens' inputs.
    """
    features: dict[str, Tensor] = {}
    tower = get_tower(model)
    forward = tower.forward

    def record_forward(*args: Any, **options: Any) -> Any:
        return _RecordingOutput(forward(*args, **options), features)

    with _replace_forward(tower, record_forward):
        model.get_image_features(**match_dtype(inputs, model))
    return features


@contextmanager
def inject_cached_features(model: Any, features: Features | None) -> Iterator[None]:
    """Make the tower return cached features, whatever its input; None: it computes them."""
    if features is None:
        yield
        return
    with _replace_forward(get_tower(model), lambda *args, **options: _CachedOutput(features)):
        yield


def join_features(rows: Sequence[Features]) -> dict[str, Tensor]:
    """Return the features of several samples joined to a batch."""
    return {field: torch.cat([row[field] for row in rows]) for field in rows[0]}


@contextmanager
def _replace_forward(tower: Any, forward: Any) -> Iterator[None]:
    # Set on the instance, over the class's method, so that hooks around the call stay.
    previous = tower.__dict__.get("forward")
    tower.forward = forward
    try:
        yield
    finally:
        if previous is None:
            del tower.forward
        else:
            tower.forward = previous


class _RecordingOutput:
    """A tower's output that records which fields are read."""

    def __init__(self, output: Any, features: dict[str, Tensor]) -> None:
        self._output, self._features = output, features

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._output, name)
        if isinstance(value, Tensor):
            self._features[name] = value.detach()
        elif isinstance(value, (list, tuple)):
            return _RecordingList(name, value, self._features)
        return value


class _RecordingList:
    """A list of tensors in a tower's output."""

    def __init__(self, name: str, values: Sequence[Any], features: dict[str, Tensor]) -> None:
        self._name, self._values, self._features = name, values, features

    def __getitem__(self, index: int) -> Any:
        value = self._values[index]
        if isinstance(value, Tensor):
            self._features[f"{self._name}:{index}"] = value.detach()
        return value

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self._values)))

    def __len__(self) -> int:
        return len(self._values)


class _CachedOutput:
    """A tower's output that holds only the fields that are read."""

    def __init__(self, features: Features) -> None:
        lists: dict[str, dict[int, Tensor]] = {}
        for field, value in features.items():
            name, is_entry, index = field.partition(":")
            if is_entry:
                lists.setdefault(name, {})[int(index)] = value
            else:
                setattr(self, name, value)
        for name, entries in lists.items():
            setattr(self, name, _PartialList(entries))


class _PartialList:
    """A list of tensors with only some entries present."""

    def __init__(self, entries: dict[int, Tensor]) -> None:
        self._entries = entries

    def __getitem__(self, index: int) -> Tensor:
        return self._entries[index]

    def __iter__(self) -> Iterator[Tensor]:
        return (self._entries[index] for index in sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
