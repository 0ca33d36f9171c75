"""Check whether a file's weights fit a model, and map names of earlier versions to its names.

PEFT and torch load what has a place and only warn about the rest: an adapter none of whose names
fits leaves the base model unchanged, which would then be scored as the trained one. So names and
shapes are compared with the model's before anything is loaded. The other names known are those of

- transformers before 4.52: the decoder and its siblings were placed elsewhere, in two ways;
- transformers of other versions: the vision tower's layers are in a `vision_model`, or not;
- DDP, FSDP, activation checkpointing and torch.compile: a component of their own within names;
- PEFT: its prefix missing, there twice or behind another; the adapter's name within names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.utils.errors import UnfitError

#: The prefix of base model names in a model with adapters.
WITHIN_PEFT = "base_model.model."

#: Components that wrappers add to names: DDP, torch.compile, FSDP, activation checkpointing,
#: DeepSpeed.
_WRAPPERS = frozenset(
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
_BEGINNINGS: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    ),
    (("model.language_model.", "model."), ("model.", "")),
)

_TOWER, _WITHIN_TOWER = "model.vision_tower.", "vision_model."

#: An adapter's name within a weight's name, which `state_dict` has and a saved file has not.
_ADAPTER_NAME = re.compile(r"(?<=\.)(lora_\w+)\.(?!(?:weight|bias)$)[^.]+(?=\.(?:weight|bias)$|$)")
_SAVED_WHOLE = re.compile(r"(?<=\.)modules_to_save\.[^.]+\.")
_ADAPTERS = re.compile(r"\.(lora_\w+|base_layer)\b")  # modules that PEFT put into a model
_MAGNITUDE = ".lora_magnitude_vector"

_SHOWN = 3  # names in a message


class Layout:
    """The module names that a file uses."""

    def __init__(self, names: Iterable[str], beginnings: Sequence[tuple[str, str]]) -> None:
        self.today = not beginnings
        self.written = {name: _renamed(name, beginnings) for name in names if name}
        self._modules = {written: name for name, written in self.written.items() if written}
        components = {part for name in self.written for part in name.split(".")}
        self._wrappers = _WRAPPERS - components  # a model may have its own `module`

    def owner(self, name: str) -> str:
        """Return the innermost module of a name that belongs to the model itself."""
        module = name
        while module and module not in self.written:
            module = module.rpartition(".")[0]
        return module or name

    def is_layers(self, name: str) -> bool:
        """Return whether a name's module exists and has no submodules."""
        module, _, depth = self._found(name)
        return depth > 0 and not any(other.startswith(f"{module}.") for other in self.written)

    def depth(self, name: str) -> int:
        """Return how many leading components of a name are known."""
        return self._found(name)[2]

    def name(self, name: str) -> str:
        """Return a name of the file as it is in the model."""
        found, rest, _ = self._found(name)
        return f"{found}.{rest}" if found and rest else found or rest

    def plain(self, name: str) -> str:
        """Return a name of this layout without PEFT's prefix and wrappers' components."""
        parts = [
            part
            for part in name.rpartition(WITHIN_PEFT)[2].split(".")
            if part not in self._wrappers
        ]
        # Of `base_model.model.model.…`, only `base_model.` may have been removed.
        readings = [parts, *([parts[1:]] if parts[0] == "model" else [])]
        likelier = max(readings, key=self._known)
        return ".".join(likelier)

    def _known(self, parts: list[str]) -> tuple[bool, int]:
        """Return the rank of a reading of a name; the likelier reading has the higher one."""
        depth = self._depth(parts)
        return depth > 0, depth - len(parts)

    def _found(self, name: str) -> tuple[str, str, int]:
        parts = self.plain(name).split(".")
        depth = self._depth(parts)
        rest = ".".join(parts[depth:])
        return (self._modules[".".join(parts[:depth])] if depth else ""), rest, depth

    def _depth(self, parts: Sequence[str]) -> int:
        return next(
            (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in self._modules), 0
        )


def layouts(model: Any) -> list[Layout]:
    """Return the layouts that files of a model may have, today's first.

    Modules of adapters are ignored.
    """
    modules = [name for name, _ in model.named_modules() if not _ADAPTERS.search(name)]
    return [Layout(modules, each) for each in _all_beginnings(modules)]


def layout_of(model: Any, names: Iterable[str]) -> Layout:
    """Return the layout that knows most of the names in a file; today's if no other knows more."""
    names = list(names)
    return max(layouts(model), key=lambda layout: sum(map(layout.depth, names)))


class Fit:
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
        """Match each weight with its place.

        Args:
            weights: the file's.
            layout: the file's module names.
            required: the places, by name, that must be filled.
            others: those that may be filled.
            prefix: the prefix of the places' names that the modules' names lack.
        """
        self.weights: dict[str, Tensor] = {}
        self.homeless: list[str] = []
        self.misshapen: list[str] = []
        self._total = len(weights)
        self._layout, self._prefix, self._required = layout, prefix, required
        for written, weight in weights.items():
            name = next(
                (
                    name
                    for places in (required, others)
                    for name in _candidates(written, layout, prefix)
                    if name in places and name not in self.weights
                ),
                None,
            )
            if name is None:
                self.homeless.append(written)
                continue
            place = required[name] if name in required else others[name]
            if place.shape != weight.shape:
                of_file, of_model = size(weight.shape), size(place.shape)
                self.misshapen.append(f"{written} is {of_file}, there it is {of_model}")
            self.weights[name] = weight
        self.lacking = [name for name in required if name not in self.weights]

    def check(self, file: str, model: str, *, layers: str, other: str, again: str) -> None:
        """Check that every weight has a place, every required place a weight, and all are finite.

        Args:
            file: the file read, as named to the user.
            model: the model that it is loaded into.
            layers: the term for the modules that need weights.
            other: what to do if it is another model's.
            again: what to do if it is this model's and incomplete.

        Raises:
            UnfitError: it does not fit; nothing was loaded.
        """
        wrong = []
        if self.homeless:
            wrong.append(
                f"{len(self.homeless)} of its {self._total} weights have no place in it "
                f"({first_names(self.homeless)})"
            )
        if self.misshapen:
            wrong.append(
                f"{len(self.misshapen)} have another shape ({first_names(self.misshapen)})"
            )
        advice = other if wrong else again
        if self.lacking:
            without, adapted = self._modules(self.lacking), self._modules(self._required)
            wrong.append(
                f"{len(without)} of the {len(adapted)} {layers} get none, or not all of theirs "
                f"({first_names(without)})"
            )
        if wrong:
            raise UnfitError(f"{file} does not fit {model}: {'; '.join(wrong)}: {advice}")
        check_finite(file, self.weights)

    def _modules(self, names: Iterable[str]) -> list[str]:
        """Return the modules of some places, without duplicates."""
        return list(
            dict.fromkeys(self._layout.owner(name.removeprefix(self._prefix)) for name in names)
        )


def check_finite(file: str, weights: Mapping[str, Tensor]) -> None:
    """Check that weights are finite.

    Raises:
        UnfitError: some are not.
    """
    broken = [
        name
        for name, weight in weights.items()
        # The sum is a fast check: it is finite only if every number is. A sum of finite numbers may
        # overflow.
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all()
    ]
    if broken:
        raise UnfitError(
            f"{file}: {len(broken)} of its weights are not finite ({first_names(broken)}): "
            "what wrote them had failed; take an earlier one"
        )


def wrapper(names: Iterable[str]) -> str | None:
    """Return the wrapper's component that all names contain; None if not all do."""
    held = [set(name.split(".")) for name in names]
    return min(_WRAPPERS.intersection(*held), default=None) if held else None


def size(shape: Sequence[int]) -> str:
    """Return a shape as text for a message."""
    return "×".join(map(str, shape)) or "one number"


def first_names(names: Sequence[str]) -> str:
    """Return the first of some names as text for a message."""
    return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])


def _candidates(written: str, layout: Layout, prefix: str) -> list[str]:
    """Return the places that a name in a file may mean, the likeliest first."""
    name = prefix + layout.name(_SAVED_WHOLE.sub("", _ADAPTER_NAME.sub(r"\1", written)))
    head, _, last = name.rpartition(".")
    found = [name, f"{head}.base_layer.{last}"]
    if head.endswith(_MAGNITUDE):
        found.append(head)
    return [*found, written]


def _all_beginnings(modules: Sequence[str]) -> list[tuple[tuple[str, str], ...]]:
    """Return the prefixes of names in each layout that a model may have had, today's first."""
    bases = _BEGINNINGS if "model.language_model" in modules else _BEGINNINGS[:1]
    if "model.vision_tower" not in modules:
        return list(bases)
    inner = _WITHIN_TOWER if f"{_TOWER}{_WITHIN_TOWER}"[:-1] in modules else ""
    other = "" if inner else _WITHIN_TOWER
    towers = [
        ((_TOWER + inner, _renamed(_TOWER[:-1], base) + "." + other), *base) for base in bases
    ]
    return [*bases, *towers]


def _renamed(name: str, beginnings: Sequence[tuple[str, str]]) -> str:
    for now, then in beginnings:
        if f"{name}.".startswith(now):
            return (then + f"{name}.".removeprefix(now)).removesuffix(".")
    return name
