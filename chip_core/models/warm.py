"""The base model that a process loaded last, for the next trial of the same process.

A trial gets a copy: modules of its own, so that no adapter, hook or setting of one trial reaches
the next. Weights that the trial does not train are shared with the copy that is kept, since nothing
writes to them: on a GPU they stay there. Weights that it trains are mapped anew for each trial from
a file (chip_core/models/mapped.py): a page of them is copied when the trial first writes to it, and
the kept ones are untouched. So a second load takes next to nothing of the weights, and a GPU holds
nothing that a trial by itself would not have there.

The file is the model's own where it holds the weights as they are used: then all processes of the
machine that load it share its pages, and a process has only what it has changed. Where they were
converted, from bf16 to fp32 say, it is one in this process's memory: while they are trained, the
process holds them twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

from chip_core.config import TrialConfig
from chip_core.models.mapped import MappedWeights
from chip_core.models.parts import trained_parts

#: A model of more than this share of the machine's memory is not kept.
_LARGEST_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class _Kept:
    key: Hashable  # the weights and how they were loaded
    model: Any
    processor: Any
    mapped: MappedWeights


class BaseModels:
    """The base model that was loaded last, if it is to be kept."""

    def __init__(self) -> None:
        """Nothing is kept, until `keep`."""
        self._keep = False
        self._kept: _Kept | None = None

    def keep(self) -> None:
        """Keep the base model that is loaded next, for all that this process runs."""
        self._keep = True

    def forget(self) -> None:
        """Keep nothing."""
        self._keep, self._kept = False, None

    def make_room(self) -> None:
        """Leave a GPU to another model."""
        if self._kept is not None:
            self._kept.model.to("cpu")

    def get(
        self, key: Hashable, load: Callable[[], tuple[Any, Any]], config: TrialConfig | None
    ) -> tuple[Any, Any]:
        """Return a base model and its processor, loaded or copied from those that are kept.

        Args:
            key: equal for equal weights that are loaded in an equal way.
            load: loads them.
            config: the trial that is going to train the model; None: nobody writes to it.
        """
        if not self._keep:
            return load()
        if self._kept is None or self._kept.key != key:
            self._kept = None  # not two at a time
            model, processor = load()
            if _bytes(model) > _LARGEST_SHARE * psutil.virtual_memory().total:
                return model, processor
            mapped = MappedWeights(model)
            self._kept = _Kept(key=key, model=model, processor=processor, mapped=mapped)
        model, mapped = self._kept.model, self._kept.mapped
        trained = {} if config is None else trained_parts(model, config)
        own = {name: weight for weights in trained.values() for name, weight in weights.items()}
        copies: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
        copies |= {id(own[name]): weight for name, weight in mapped.again(own).items()}
        return copy.deepcopy(model, copies), copy.deepcopy(self._kept.processor)


def _bytes(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


#: Of this process.
BASE_MODELS = BaseModels()
