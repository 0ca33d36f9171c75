"""A global batch divided over workers and passes: nothing lost, nothing twice, all in step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip_core.data.loader import portions


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
    divided = portions(places, micro_batch=micro_batch, workers=workers, lengths=lengths)
    assert len(divided) == workers
    assert len({len(rounds) for rounds in divided}) == 1
    counted = [
        p for rounds in divided for portion in rounds if portion.counts for p in portion.places
    ]
    assert sorted(counted) == sorted(places)
    sizes = {len(portion.places) for rounds in divided for portion in rounds if portion.counts}
    assert max(sizes) <= micro_batch
    assert max(sizes) - min(sizes) <= 1
    assert all(portion.places for rounds in divided for portion in rounds)


def test_one_pass_keeps_the_order() -> None:
    (alone,) = portions([5, 3, 9], micro_batch=4, lengths=list(range(10)))
    assert [portion.places for portion in alone] == [(5, 3, 9)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rounds_portions_are_of_like_length(workers: int) -> None:
    # Lengths 10, 20, … 80 at places 0 … 7: cut by length, longest first, two at a time.
    lengths = [10 * (place + 1) for place in range(8)]
    divided = portions([0, 7, 1, 6, 2, 5, 3, 4], micro_batch=2, workers=workers, lengths=lengths)
    cut = [(7, 6), (5, 4), (3, 2), (1, 0)]
    assert [[portion.places for portion in rounds] for rounds in divided] == [
        cut[rank::workers] for rank in range(workers)
    ]


def test_more_workers_than_pairs() -> None:
    divided = portions([4, 2], micro_batch=8, workers=3)
    assert [(rounds[0].places, rounds[0].counts) for rounds in divided] == [
        ((4,), True),
        ((2,), True),
        ((4,), False),
    ]
