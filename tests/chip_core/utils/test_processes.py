"""Values are made in processes beside this one, in order, whatever becomes of these."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from chip_core.utils.processes import map_values


def made(value: int) -> tuple[int, int]:
    """Return a value's square, and who made it; of 40 its process is killed."""
    if value == 40 and os.environ.get("KILLED_AT_40") != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return value**2, os.getpid()


def pairs(count: int) -> Iterator[tuple[str, int]]:
    return ((f"key {number}", number) for number in range(count))


def ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(autouse=True)
def _this_one_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLED_AT_40", str(os.getpid()))


def test_keys_come_with_what_their_values_make_in_order() -> None:
    alone = list(map_values(made, pairs(39)))
    shared = list(map_values(made, pairs(39), 3))
    expected = [(f"key {number}", number**2) for number in range(39)]
    assert [(key, square) for key, (square, _) in alone] == expected
    assert [(key, square) for key, (square, _) in shared] == expected
    assert {maker for _, (_, maker) in alone} == {os.getpid()}
    makers = {maker for _, (_, maker) in shared}
    assert len(makers) == 2  # of three, for 39 values are two chunks
    assert os.getpid() not in makers
    assert all(map(ended, makers))


def test_what_a_killed_process_had_is_made_here() -> None:
    found = list(map_values(made, pairs(200), 2))
    assert [square for _, (square, _) in found] == [number**2 for number in range(200)]
    makers = [maker for _, (_, maker) in found]
    assert makers[0] == makers[64] == makers[31]  # the first process has every second chunk
    assert set(makers[32:64]) == {os.getpid()}
    assert makers[0] != os.getpid()


def test_who_stops_early_leaves_no_process() -> None:
    values = map_values(made, pairs(500), 2)
    makers = {next(values)[1][1] for _ in range(39)}
    values.close()  # type: ignore[attr-defined]
    assert len(makers) == 2  # the first's, and what this one made for the killed second
    assert all(map(ended, makers - {os.getpid()}))
