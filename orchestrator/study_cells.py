"""From factors to cells: which factor applies where, and what a design takes of the grid. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from orchestrator.study import Cell, Design, Factor, Pattern, Study, matches

#: More than this is no study but a mistake, and would fill the memory before anybody is told.
LARGEST = 200_000


class TooManyCellsError(Exception):
    """The factors come to more cells than can be planned."""


class CircleError(Exception):
    """Factors that each apply only where another one does."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Factors, and under which patterns of the others each applies (none named: everywhere)."""

    factors: tuple[Factor, ...]
    when: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)

    @cached_property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        """Factor -> the names of its levels."""
        return {
            factor.name: tuple(level.name for level in factor.levels) for factor in self.factors
        }

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The factors, each after those that decide whether it applies.

        Raises:
            CircleError: there is no such order; names the factors in a circle.
        """
        left, placed = list(self.levels), []
        while left:
            ready = [name for name in left if not self._deciding(name) & set(left)]
            if not ready:
                raise CircleError(", ".join(left))
            placed.append(ready[0])  # one at a time: the file's order wherever it will do
            left.remove(ready[0])
        return tuple(placed)

    def applies(self, name: str, cell: Mapping[str, str]) -> bool:
        """Return whether a factor applies in a cell that has the levels that decide it."""
        conditions = self.when.get(name)
        return conditions is None or any(matches(pattern, cell) for pattern in conditions)

    def expand(self, chosen: Mapping[str, Sequence[str]] | None = None) -> list[Cell]:
        """Return every cell of the grid, or of a part of it, in the file's order.

        Args:
            chosen: factor -> the levels to take of it; those not named are taken with all.

        Raises:
            TooManyCellsError: there are more than `LARGEST`.
        """
        cells: list[Cell] = [{}]
        for name in self.order:
            levels = (chosen or {}).get(name, self.levels[name])
            conditional = name in self.when
            grown = (
                larger
                for cell in cells
                for larger in (
                    [cell]
                    if conditional and not self.applies(name, cell)
                    else [{**cell, name: level} for level in levels]
                )
            )
            cells = list(itertools.islice(grown, LARGEST + 1))
            if len(cells) > LARGEST:
                raise TooManyCellsError
        return cells if self.order == tuple(self.levels) else self._in_file_order(cells)

    def misfits(self, given: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
        """Yield each factor that makes a mapping no cell, and whether it is one too many.

        Args:
            given: factor -> level.
        """
        cell: dict[str, str] = {}
        for name in self.order:
            if not self.applies(name, cell):
                if name in given:
                    yield name, True
            elif name in given:
                cell[name] = given[name]
            else:
                yield name, False

    def in_order(self, cell: Mapping[str, str]) -> Cell:
        """Return a cell with its factors in the file's order."""
        return {name: cell[name] for name in self.levels if name in cell}

    def _deciding(self, name: str) -> set[str]:
        return {factor for pattern in self.when.get(name, ()) for factor in pattern}

    def _in_file_order(self, cells: list[Cell]) -> list[Cell]:
        place = {
            (name, level): number
            for name, levels in self.levels.items()
            for number, level in enumerate(levels)
        }
        names = list(self.levels)
        ordered = [self.in_order(cell) for cell in cells]
        return sorted(
            ordered,
            key=lambda cell: [place[name, cell[name]] if name in cell else -1 for name in names],
        )


def first_cell(grid: Grid, design: Design) -> Cell:
    """Return the cell that a design starts from where the file names no baseline.

    It has the first level of each factor; under `leave_one_out`, which starts from the whole, the
    last.
    """
    last = design == "leave_one_out"
    return grid.expand({name: levels[-1:] if last else levels[:1]
                        for name, levels in grid.levels.items()})[0]  # fmt: skip


def laid_out(grid: Grid, design: Design, baseline: Cell) -> list[Cell]:
    """Return the cells of a design, which is any but `cells`.

    A factor that comes to apply because another one changed has all its levels.

    Raises:
        TooManyCellsError: as `Grid.expand`.
    """
    if design == "grid":
        return grid.expand()
    parts = [[baseline]]
    for name, level in baseline.items():
        levels = grid.levels[name]
        others = levels[:1] if design == "leave_one_out" else levels
        fixed = {factor: [kept] for factor, kept in baseline.items()}
        parts += [grid.expand({**fixed, name: [other]}) for other in others if other != level]
    return _each_once(itertools.chain.from_iterable(parts))


def layout_notes(study: Study) -> Iterator[str]:
    """Say which cells there are, where that is not the whole grid, and which factor goes where."""
    if study.design != "grid":
        around = ", ".join(f"{factor} = {level}" for factor, level in study.baseline.items())
        made = {
            "one_at_a_time": f"{around}, and each cell that differs from it in one factor",
            "leave_one_out": f"{around}, and each factor put back to its first level in turn",
            "cells": "the cells that the file lists",
        }[study.design]
        yield f"design {study.design}: {made}"
    if study.left_out:
        cells = "1 cell" if study.left_out == 1 else f"{study.left_out} cells"
        yield f"left out by include and exclude: {cells}"
    for name, patterns in study.when.items():
        without = sum(name not in cell for cell in study.cells)
        cells = "1 cell goes" if without == 1 else f"{without} cells go"
        yield f"{name} applies only where {condition_text(patterns)}: {cells} without it"


def condition_text(patterns: Sequence[Pattern]) -> str:
    """Return when patterns match, in words: `objective = chip or hdpo`."""
    return ", or ".join(
        " and ".join(
            f"{factor} = {' or '.join(sorted(levels))}" for factor, levels in pattern.items()
        )
        for pattern in patterns
    )


def _each_once(cells: Iterator[Cell]) -> list[Cell]:
    return [dict(items) for items in dict.fromkeys(tuple(cell.items()) for cell in cells)]
