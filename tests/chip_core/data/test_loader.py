"""Batches encoded ahead are those that would be encoded when asked for; so are errors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.loader import Loader, Portion
from chip_core.data.preferences import load_pairs
from chip_core.data.tensors import PairBatch
from chip_core.models import loading
from chip_core.utils.errors import TrialError

SCHEDULE = [(Portion(places=(4, 2)), 0), (Portion(places=(7,)), 0), (Portion(places=(2, 4)), 1)] * 2


def tensors(batch: PairBatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        for entry in (
            value.values()
            if isinstance(value, dict)
            else vars(value).values()
            if hasattr(value, "__dataclass_fields__")
            else ()
        ):
            walk(entry)

    walk(batch)
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_ahead_or_not_the_batches_are_the_same_to_the_bit(
    shapes_config: Callable[..., TrialConfig], processes: int
) -> None:
    config = shapes_config(rejected_image={"redraw": "each_epoch"}, training__max_length=60)
    _, processor = loading.load(config.model)
    encoder = PairEncoder(processor, config, load_pairs(config.data))
    here = Loader(encoder.batch, SCHEDULE)
    ahead = Loader(encoder.batch, SCHEDULE, processes=processes)
    for portion, epoch in SCHEDULE:
        one, other = here.next(), ahead.next()
        assert one.places == other.places == portion.places
        assert one.epoch == other.epoch == epoch
        assert (one.void, one.cut) == (other.void, other.cut)
        assert len(tensors(one)) > 10
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(a, b)
    assert here.waited > 0


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_comes_out_where_its_batch_is_asked_for(processes: int) -> None:
    def encode(places: Sequence[int], epoch: int) -> Any:
        if 7 in places:
            raise TrialError("row 7 changed")
        return places

    loader = Loader(encode, SCHEDULE, processes=processes)
    assert loader.next() == (4, 2)
    with pytest.raises(TrialError) as raised:
        loader.next()
    assert str(raised.value) == "row 7 changed"  # a reason is one line


def test_a_process_that_is_killed_is_told() -> None:
    def encode(places: Sequence[int], epoch: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    loader = Loader(encode, SCHEDULE, processes=1)
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly|killed"):
        loader.next()
