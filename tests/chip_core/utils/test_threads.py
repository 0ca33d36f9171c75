"""Values are made in threads, in order, whatever becomes of them."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from chip_core.utils.threads import map_values


def square_slowly(value: int) -> tuple[int, str]:
    time.sleep(0.002 * (value % 3))
    return value**2, threading.current_thread().name


def iter_keyed_numbers(count: int) -> Iterator[tuple[str, int]]:
    return ((f"key {number}", number) for number in range(count))


def test_keys_come_with_what_their_values_make_in_order() -> None:
    alone, shared = (
        list(map_values(square_slowly, iter_keyed_numbers(50))),
        list(map_values(square_slowly, iter_keyed_numbers(50), 3)),
    )
    expected = [(f"key {number}", number**2) for number in range(50)]
    assert [(key, square) for key, (square, _) in alone] == expected
    assert [(key, square) for key, (square, _) in shared] == expected
    here = threading.current_thread().name
    assert {maker for _, (_, maker) in alone} == {here}
    assert here not in {maker for _, (_, maker) in shared}


def test_few_inputs_are_taken_ahead_of_the_results() -> None:
    taken: list[int] = []

    def noted() -> Iterator[tuple[int, int]]:
        for number in range(100):
            taken.append(number)
            yield number, number

    values = map_values(square_slowly, noted(), 2)
    assert next(values)[0] == 0
    assert len(taken) == 8  # four a thread


def test_what_one_raises_is_raised_in_its_place() -> None:
    def fails(value: int) -> int:
        if value == 20:
            raise ValueError("20")
        return value

    found = []
    with pytest.raises(ValueError, match="20"):
        for key, _ in map_values(fails, iter_keyed_numbers(40), 2):
            found.append(key)
    assert found == [f"key {number}" for number in range(20)]


def test_who_stops_early_leaves_no_thread_and_no_filter() -> None:
    def quiet(value: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            time.sleep(0.001)
        return value

    before = list(warnings.filters)
    values = map_values(quiet, iter_keyed_numbers(200), 4)
    assert [next(values)[0] for _ in range(50)][-1] == "key 49"
    values.close()  # type: ignore[attr-defined]
    assert list(warnings.filters) == before
    assert not [each for each in threading.enumerate() if each.name.startswith("map")]
