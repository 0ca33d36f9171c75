"""Check whether a file's weights fit a model, and map names of earlier versions to its names.

PEFT and torch load the weights that fit and only warn about the rest. If no name of an adapter
fits, the base model stays unchanged and would be scored as the trained one. So names and shapes are
compared with the model's before anything is loaded. Other names that are recognized:

- names of transformers before 4.52, where the decoder and its siblings were elsewhere, in two ways;
- names of other transformers versions, with or without a `vision_model` around the vision tower's
  layers;
- names with a component of DDP, FSDP, activation checkpointing or torch.compile;
- PEFT's names with its prefix missing, doubled or after another one, or with the adapter's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.utils.errors import UnfitError

#: The prefix of base model names in a model with adapters.
PEFT_PREFIX = "base_model.model."

#: Components that wrappers add to names: DDP, torch.compile, FSDP, activation checkpointing,
#: DeepSpeed.
_WRAPPER_NAMES = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)

#: The prefixes of names in the model and in files: today's, and the two of before 4.52 (LLaVA and
#: related families; Qwen2-VL and Qwen2.5-VL).
_LAYOUT_PREFIXES: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    ),
    (("model.language_model.", "model."), ("model.", "")),
)

_TOWER_PREFIX, _INNER_TOWER_PREFIX = "model.vision_tower.", "vision_model."

#: An adapter's name within a weight's name, which `state_dict` has and a saved file has not.
_ADAPTER_NAME_PATTERN = re.compile(
    r"(?<=\.)(lora_\w+)\.(?!(?:weight|bias)$)[^.]+(?=\.(?:weight|bias)$|$)"
)
_MODULES_TO_SAVE_PATTERN = re.compile(r"(?<=\.)modules_to_save\.[^.]+\.")
#: Modules that PEFT put into a model.
_ADAPTER_MODULE_PATTERN = re.compile(r"\.(lora_\w+|base_layer)\b")
_MAGNITUDE_SUFFIX = ".lora_magnitude_vector"

_MAX_SHOWN_NAMES = 3  # names in a message


class Layout:
    """The module names that a file uses."""

    def __init__(self, names: Iterable[str], prefixes: Sequence[tuple[str, str]]) -> None:
        self.is_current = not prefixes
        self.file_names = {name: _rename(name, prefixes) for name in names if name}
        self._modules = {
            file_name: name for name, file_name in self.file_names.items() if file_name
        }
        components = {part for name in self.file_names for part in name.split(".")}
        self._wrappers = _WRAPPER_NAMES - components  # a model may have its own `module`

    def find_owner_module(self, name: str) -> str:
        """Return the innermost module of a name that belongs to the model itself."""
        module = name
        while module and module not in self.file_names:
            module = module.rpartition(".")[0]
        return module or name

    def is_leaf_module(self, name: str) -> bool:
        """Return whether a name's module exists and has no submodules."""
        module, _, depth = self._match(name)
        return depth > 0 and not any(other.startswith(f"{module}.") for other in self.file_names)

    def count_known(self, name: str) -> int:
        """Return how many leading components of a name are known."""
        return self._match(name)[2]

    def to_model_name(self, name: str) -> str:
        """Return a name of the file as it is in the model."""
        module, rest, _ = self._match(name)
        return f"{module}.{rest}" if module and rest else module or rest

    def strip_wrappers(self, name: str) -> str:
        """Return a name of this layout without PEFT's prefix and wrappers' components."""
        parts = [
            part
            for part in name.rpartition(PEFT_PREFIX)[2].split(".")
            if part not in self._wrappers
        ]
        # Of `base_model.model.model.…`, only `base_model.` may have been removed.
        readings = [parts, *([parts[1:]] if parts[0] == "model" else [])]
        best = max(readings, key=self._rank_reading)
        return ".".join(best)

    def _rank_reading(self, parts: list[str]) -> tuple[bool, int]:
        """Return the rank of a reading of a name: the likelier the reading, the higher."""
        depth = self._known_prefix(parts)
        return depth > 0, depth - len(parts)

    def _match(self, name: str) -> tuple[str, str, int]:
        parts = self.strip_wrappers(name).split(".")
        depth = self._known_prefix(parts)
        rest = ".".join(parts[depth:])
        return (self._modules[".".join(parts[:depth])] if depth else ""), rest, depth

    def _known_prefix(self, parts: Sequence[str]) -> int:
        return next(
            (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in self._modules), 0
        )


def list_layouts(model: Any) -> list[Layout]:
    """Return the layouts that files of a model may have, today's first.

    Modules of adapters are ignored.
    """
    modules = [
        name for name, _ in model.named_modules() if not _ADAPTER_MODULE_PATTERN.search(name)
    ]
    return [Layout(modules, prefixes) for prefixes in _all_prefixes(modules)]


def find_layout(model: Any, file_names: Iterable[str]) -> Layout:
    """Return the layout with most of the names in a file; today's if no other has more."""
    file_names = list(file_names)
    return max(list_layouts(model), key=lambda layout: sum(map(layout.count_known, file_names)))


class WeightMatch:
    """A file's weights, matched with the places that a model has for them."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        layout: Layout,
        *,
        required: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        prefix: str = "",
    ) -> None:
        """Match each weight with a parameter of the model.

        Args:
            weights: the file's.
            layout: the file's module names.
            required: the places, by name, that must be filled.
            others: those that may be filled.
            prefix: the prefix of the places' names that the modules' names lack.
        """
        self.weights: dict[str, Tensor] = {}
        self.unmatched: list[str] = []
        self.misshapen: list[str] = []
        self._total = len(weights)
        self._layout, self._prefix, self._required = layout, prefix, required
        for file_name, weight in weights.items():
            name = next(
                (
                    name
                    for parameters in (required, others)
                    for name in _find_candidates(file_name, layout, prefix)
                    if name in parameters and name not in self.weights
                ),
                None,
            )
            if name is None:
                self.unmatched.append(file_name)
                continue
            parameter = required[name] if name in required else others[name]
            if parameter.shape != weight.shape:
                file_shape, model_shape = format_shape(weight.shape), format_shape(parameter.shape)
                self.misshapen.append(f"{file_name} is {file_shape}, in the model {model_shape}")
            self.weights[name] = weight
        self.missing = [name for name in required if name not in self.weights]

    def check(
        self, file: str, model: str, *, layers: str, other_model_advice: str, incomplete_advice: str
    ) -> None:
        """Check that every weight fits, no required weight is missing, and all are finite.

        Args:
            file: the file read, as named to the user.
            model: the model that it is loaded into.
            layers: the term for the modules that need weights.
            other_model_advice: what to do if it is another model's.
            incomplete_advice: what to do if it is this model's and incomplete.

        Raises:
            UnfitError: it does not fit; nothing was loaded.
        """
        problems = []
        if self.unmatched:
            problems.append(
                f"{len(self.unmatched)} of its {self._total} weights do not exist in it "
                f"({format_names(self.unmatched)})"
            )
        if self.misshapen:
            problems.append(
                f"{len(self.misshapen)} have another shape ({format_names(self.misshapen)})"
            )
        advice = other_model_advice if problems else incomplete_advice
        if self.missing:
            incomplete_modules = self._list_modules(self.missing)
            required_modules = self._list_modules(self._required)
            problems.append(
                f"{len(incomplete_modules)} of the {len(required_modules)} {layers} get none, or "
                f"not all of theirs ({format_names(incomplete_modules)})"
            )
        if problems:
            raise UnfitError(f"{file} does not fit {model}: {'; '.join(problems)}: {advice}")
        check_finite(file, self.weights)

    def _list_modules(self, names: Iterable[str]) -> list[str]:
        """Return the modules of some places, without duplicates."""
        return list(
            dict.fromkeys(
                self._layout.find_owner_module(name.removeprefix(self._prefix)) for name in names
            )
        )


def check_finite(file: str, weights: Mapping[str, Tensor]) -> None:
    """Check that weights are finite.

    Raises:
        UnfitError: some are not.
    """
    non_finite = [
        name
        for name, weight in weights.items()
        # The sum is a fast check: it is finite only if every number is. A sum of finite numbers may
        # overflow.
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all()
    ]
    if non_finite:
        raise UnfitError(
            f"{file}: {len(non_finite)} of its weights are not finite "
            f"({format_names(non_finite)}): the program that wrote them had failed; use an "
            "earlier file"
        )


def find_wrapper(names: Iterable[str]) -> str | None:
    """Return the wrapper's component that all names contain; None if not all do."""
    components = [set(name.split(".")) for name in names]
    return min(_WRAPPER_NAMES.intersection(*components), default=None) if components else None


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as text for a message."""
    return "×".join(map(str, shape)) or "one number"


def format_names(names: Sequence[str]) -> str:
    """Return the first of some names as text for a message."""
    return ", ".join([*names[:_MAX_SHOWN_NAMES], *(["…"] if len(names) > _MAX_SHOWN_NAMES else [])])


def _find_candidates(file_name: str, layout: Layout, prefix: str) -> list[str]:
    """Return the places that a name in a file may mean, the likeliest first."""
    name = prefix + layout.to_model_name(
        _MODULES_TO_SAVE_PATTERN.sub("", _ADAPTER_NAME_PATTERN.sub(r"\1", file_name))
    )
    head, _, last = name.rpartition(".")
    candidates = [name, f"{head}.base_layer.{last}"]
    if head.endswith(_MAGNITUDE_SUFFIX):
        candidates.append(head)
    return [*candidates, file_name]


def _all_prefixes(modules: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """Return the prefixes of names in each layout that a model may have had, today's first."""
    bases = _LAYOUT_PREFIXES if "model.language_model" in modules else _LAYOUT_PREFIXES[:1]
    if "model.vision_tower" not in modules:
        return list(bases)
    present_infix = (
        _INNER_TOWER_PREFIX if f"{_TOWER_PREFIX}{_INNER_TOWER_PREFIX}"[:-1] in modules else ""
    )
    other_infix = "" if present_infix else _INNER_TOWER_PREFIX
    towers = [
        (
            (_TOWER_PREFIX + present_infix, _rename(_TOWER_PREFIX[:-1], base) + "." + other_infix),
            *base,
        )
        for base in bases
    ]
    return [*bases, *towers]


def _rename(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    for current, former in prefixes:
        if f"{name}.".startswith(current):
            return (former + f"{name}.".removeprefix(current)).removesuffix(".")
    return name
