"""Record a frozen vision tower's output once, and inject it instead of computing it again.

Only the parts of the tower's output that the family's own code reads are kept (one layer of LLaVA's
hidden states), so that selection, projector and packing work as before, with their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.models.parts import find_tower_layers, find_unread_modules, group_parameters
from chip_core.models.precision import match_dtype

#: Field of the output -> (rows, …): the images' tiles or patches, concatenated. An entry of a list
#: is `FIELD:INDEX`.
Features = Mapping[str, Tensor]

#: Layers whose first input is hidden states and whose only output is hidden states: those of LLaVA
#: and related models.
_TENSOR_LAYERS = ("CLIPEncoderLayer", "SiglipEncoderLayer")


def get_tower(model: Any) -> Any:
    """Return a model's vision tower."""
    return model.get_encoder(modality="image")


def is_frozen(model: Any, config: TrialConfig) -> bool:
    """Return whether nothing within the tower is ever trained; a projector may be within it."""
    tower_ids = {id(parameter) for parameter in get_tower(model).parameters()}
    return not any(
        id(parameter) in tower_ids
        for part, parameters in group_parameters(model).items()
        if getattr(config, part) != "frozen"
        for parameter in parameters.values()
    )


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
