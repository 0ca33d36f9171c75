"""How many cells there are, and which: against counting by hand and by the definition."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.study.design import (
    MAX_CELLS,
    CircularConditionError,
    Grid,
    TooManyCellsError,
    design_cells,
    first_cell,
)
from orchestrator.study.model import Cell, Factor, Level, Pattern, matches

#: Levels of each of up to five factors.
COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def make_factors(counts: list[int]) -> tuple[Factor, ...]:
    return tuple(
        Factor(
            name=f"f{place}",
            levels=tuple(Level(name=f"l{number}", overrides={}) for number in range(count)),
        )
        for place, count in enumerate(counts)
    )


@st.composite
def draw_conditional_grids(draw: st.DrawFn) -> Grid:
    """Draw grids where some factors depend on others, that stand before or behind them."""
    counts = draw(COUNTS)
    rank = draw(st.permutations(range(len(counts))))  # a factor depends on those of lower rank
    when: dict[str, tuple[Pattern, ...]] = {}
    for place in range(len(counts)):
        below = [other for other in range(len(counts)) if rank[other] < rank[place]]
        if below and draw(st.booleans()):
            patterns = draw(
                st.lists(
                    st.dictionaries(
                        st.sampled_from([f"f{other}" for other in below]),
                        st.frozensets(st.sampled_from(["l0", "l1", "l2"]), min_size=1),
                        min_size=1,
                    ),
                    min_size=1,
                    max_size=2,
                )
            )
            when[f"f{place}"] = tuple(patterns)
    return Grid(factors=make_factors(counts), when=when)


def expand_by_definition(grid: Grid) -> list[Cell]:
    """List every choice of levels in which a factor has one where its condition holds."""
    choices = [[None, *levels] for levels in grid.levels.values()]
    found = []
    for chosen in itertools.product(*choices):
        pairs = zip(grid.levels, chosen, strict=True)
        cell = {name: level for name, level in pairs if level is not None}
        if all(
            (name in cell)
            == (name not in grid.when or any(matches(one, cell) for one in grid.when[name]))
            for name in grid.levels
        ):
            found.append(cell)
    return found


@given(COUNTS)
def test_how_many_cells_a_design_has(counts: list[int]) -> None:
    grid = Grid(factors=make_factors(counts))
    for design, expected in (
        ("grid", math.prod(counts)),
        ("one_at_a_time", 1 + sum(count - 1 for count in counts)),
        ("leave_one_out", 1 + sum(count > 1 for count in counts)),
    ):
        cells = design_cells(grid, design, first_cell(grid, design))  # type: ignore[arg-type]
        assert len(cells) == expected
        assert len({tuple(cell.items()) for cell in cells}) == expected


@given(draw_conditional_grids())
def test_conditions_are_kept_whatever_their_order(grid: Grid) -> None:
    assert grid.expand() == expand_by_definition(grid)  # cells and their order, the file's


@settings(max_examples=60)
@given(draw_conditional_grids(), st.data())
def test_one_at_a_time_is_what_it_says(grid: Grid, data: st.DataObject) -> None:
    every = grid.expand()
    baseline = data.draw(st.sampled_from(every))
    cells = design_cells(grid, "one_at_a_time", baseline)
    assert cells[0] == baseline
    assert all(cell in every for cell in cells)
    for name, level in baseline.items():
        for other in set(grid.levels[name]) - {level}:
            assert any(cell[name] == other for cell in cells if name in cell)
    for cell in cells[1:]:
        free = {name for name, level in baseline.items() if cell.get(name, level) != level}
        assert len(free) == 1


def test_a_circle_is_found() -> None:
    when = {"f0": ({"f1": frozenset({"l0"})},), "f1": ({"f0": frozenset({"l0"})},)}
    with pytest.raises(CircularConditionError, match="f0, f1"):
        Grid(factors=make_factors([2, 2, 2]), when=when).dependency_order  # noqa: B018 - raises


def test_too_many_cells_are_told_before_they_fill_the_memory() -> None:
    assert MAX_CELLS < 1000**3
    with pytest.raises(TooManyCellsError):
        Grid(factors=make_factors([1000, 1000, 1000])).expand()
