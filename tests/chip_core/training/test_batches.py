"""Batches encoded ahead are those that would be encoded when asked for; so are errors.

What a machine cannot do is said in a line, before a model is loaded.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import load_pairs
from chip_core.data.tensors import PairBatch
from chip_core.models import loading
from chip_core.training.batches import BatchLoader, Portion, resolve_device, split_batch
from chip_core.utils.errors import TrialError

SCHEDULE = [
    (Portion(indices=(4, 2)), 0),
    (Portion(indices=(7,)), 0),
    (Portion(indices=(2, 4)), 1),
] * 2


def list_tensors(batch: PairBatch) -> list[torch.Tensor]:
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
    here = BatchLoader(encoder.encode_batch, SCHEDULE)
    ahead = BatchLoader(encoder.encode_batch, SCHEDULE, processes=processes)
    for portion, epoch in SCHEDULE:
        one, other = here.next_batch(), ahead.next_batch()
        assert one.indices == other.indices == portion.indices
        assert one.epoch == other.epoch == epoch
        assert (one.void_count, one.cut_responses) == (
            other.void_count,
            other.cut_responses,
        )
        assert len(list_tensors(one)) > 10
        for a, b in zip(list_tensors(one), list_tensors(other), strict=True):
            assert torch.equal(a, b)
    assert here.wait_seconds > 0


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_comes_out_where_its_batch_is_asked_for(processes: int) -> None:
    def encode(places: Sequence[int], epoch: int) -> Any:
        if 7 in places:
            raise TrialError("row 7 changed")
        return places

    loader = BatchLoader(encode, SCHEDULE, processes=processes)
    assert loader.next_batch() == (4, 2)
    with pytest.raises(TrialError) as raised:
        loader.next_batch()
    assert str(raised.value) == "row 7 changed"  # a reason is one line


def test_a_process_that_is_killed_is_told() -> None:
    def encode(places: Sequence[int], epoch: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    loader = BatchLoader(encode, SCHEDULE, processes=1)
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly|killed"):
        loader.next_batch()


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.integers(1, 40),
    micro_batch=st.integers(1, 9),
    workers=st.integers(1, 6),
    by_length=st.booleans(),
    draw=st.randoms(use_true_random=False),
)
def test_every_pair_counts_once_and_all_workers_make_equally_many_passes(
    pairs: int, micro_batch: int, workers: int, by_length: bool, draw: object
) -> None:
    places = draw.sample(range(100), pairs)  # type: ignore[attr-defined]
    lengths = [(17 * place) % 23 for place in range(100)] if by_length else None
    divided = split_batch(places, micro_batch=micro_batch, workers=workers, lengths=lengths)
    assert len(divided) == workers
    assert len({len(rounds) for rounds in divided}) == 1
    counted = [
        p for rounds in divided for portion in rounds if portion.counts for p in portion.indices
    ]
    assert sorted(counted) == sorted(places)
    sizes = {len(portion.indices) for rounds in divided for portion in rounds if portion.counts}
    assert max(sizes) <= micro_batch
    assert max(sizes) - min(sizes) <= 1
    assert all(portion.indices for rounds in divided for portion in rounds)


def test_one_pass_keeps_the_order() -> None:
    (alone,) = split_batch([5, 3, 9], micro_batch=4, lengths=list(range(10)))
    assert [portion.indices for portion in alone] == [(5, 3, 9)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rounds_portions_are_of_like_length(workers: int) -> None:
    # Lengths 10, 20, … 80 at places 0 … 7: cut by length, longest first, two at a time.
    lengths = [10 * (place + 1) for place in range(8)]
    divided = split_batch([0, 7, 1, 6, 2, 5, 3, 4], micro_batch=2, workers=workers, lengths=lengths)
    cut = [(7, 6), (5, 4), (3, 2), (1, 0)]
    assert [[portion.indices for portion in rounds] for rounds in divided] == [
        cut[rank::workers] for rank in range(workers)
    ]


def test_more_workers_than_pairs() -> None:
    divided = split_batch([4, 2], micro_batch=8, workers=3)
    assert [(rounds[0].indices, rounds[0].counts) for rounds in divided] == [
        ((4,), True),
        ((2,), True),
        ((4,), False),
    ]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gpu_that_does_not_compute_in_bf16_is_refused_for_it_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation  # a T4 computes it in fp32, and slowly

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    config = TrialConfig.model_validate({"model": {"path": "shapes", "dtype": dtype}})
    if dtype == "fp32":
        assert resolve_device(config) == torch.device("cuda", 0)
        return
    with pytest.raises(TrialError, match="bf16, but Tesla T4 does not compute in it: write") as why:
        resolve_device(config)
    assert "\n" not in str(why.value)
    on_cpu = config.model_copy(
        update={"engine": config.engine.model_copy(update={"device": "cpu"})}
    )
    assert resolve_device(on_cpu) == torch.device("cpu")
