from __future__ import annotations

import json
from pathlib import Path

import pytest

from chip_core.objectives.parts import changed_positions


def test_equals_the_released_code(oracles: Path) -> None:
    cases = json.loads((oracles / "losses" / "segments.json").read_text())
    assert len(cases) == 200
    for case in cases:
        found = changed_positions(case["chosen"], case["rejected"])
        assert found == (case["changed_chosen"], case["changed_rejected"])
    print(f"segments of the released code: {len(cases)} of {len(cases)}")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], ([], [])),
        # 1 2 3 matches, then 9 against 8, then 4 5 6 matches
        ([1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 8, 4, 5, 6], ([3], [3])),
        # 4 5 matches over two tokens only: dropped, so it belongs to the span
        ([1, 2, 3, 9, 4, 5], [1, 2, 3, 8, 4, 5], ([3, 4, 5], [3, 4, 5])),
        # purely inserted on the rejected side: no segment
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 7, 4, 5, 6], ([], [])),
        ([], [1, 2], ([], [])),
    ],
)
def test_changed_positions_of_small_cases(
    chosen: list[int], rejected: list[int], expected: object
) -> None:
    assert changed_positions(chosen, rejected) == expected


def test_insertions_count_when_asked_for() -> None:
    found = changed_positions([1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 7, 4, 5, 6], insertions=True)
    assert found == ([], [3, 4])
