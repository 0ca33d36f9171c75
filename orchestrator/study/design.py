"""Expand factors to cells: `when`, `design`, `cells`, `include`, `exclude`, `baseline`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from chip_core.utils.errors import printable
from chip_core.utils.registry import suggest
from orchestrator.study.metrics import Wrong
from orchestrator.study.model import Cell, Design, Factor, Pattern, Study, level_text, matches
from orchestrator.study.schema import StudyFile

#: More cells than this are a mistake, and would fill the memory before it is reported.
LARGEST = 200_000


class TooManyCellsError(Exception):
    """The factors give more than `LARGEST` cells."""


class CircularConditionError(Exception):
    """Factors whose `when` conditions depend on each other in a circle."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Factors, and the patterns of other factors under which each applies (without any: always)."""

    factors: tuple[Factor, ...]
    when: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)

    @cached_property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        """The level names of each factor."""
        return {
            factor.name: tuple(level.name for level in factor.levels) for factor in self.factors
        }

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The factors, each after the ones that decide whether it applies.

        Raises:
            CircularConditionError: there is no such order; names the factors in the circle.
        """
        left, placed = list(self.levels), []
        while left:
            ready = [name for name in left if not self._deciding(name) & set(left)]
            if not ready:
                raise CircularConditionError(", ".join(left))
            placed.append(ready[0])  # one at a time, to keep the file's order where possible
            left.remove(ready[0])
        return tuple(placed)

    def applies(self, name: str, cell: Mapping[str, str]) -> bool:
        """Return whether a factor applies in a cell that has the factors that decide it."""
        conditions = self.when.get(name)
        return conditions is None or any(matches(pattern, cell) for pattern in conditions)

    def expand(self, chosen: Mapping[str, Sequence[str]] | None = None) -> list[Cell]:
        """Return every cell of the grid, or of a part of it, in the file's order.

        Args:
            chosen: factor -> the levels to use; factors that are not named use all of theirs.

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
        """Yield (factor, surplus) for each factor that a mapping lacks or has without applying.

        A mapping without any is a cell.

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
    """Return the cell that a design starts from if the file has no `baseline`.

    It has the first level of each factor, or the last under `leave_one_out`, which starts from the
    whole.
    """
    last = design == "leave_one_out"
    return grid.expand({name: levels[-1:] if last else levels[:1]
                        for name, levels in grid.levels.items()})[0]  # fmt: skip


def design_cells(grid: Grid, design: Design, baseline: Cell) -> list[Cell]:
    """Return the cells of any design but `cells`.

    A factor that applies only because another factor changed takes all of its levels.

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
    """Yield notes on the design, the cells left out, the conditional factors and the placebo."""
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
    if study.placebo:
        yield (
            "placebo: the baseline's configuration with seeds of its own "
            f"({', '.join(map(str, study.placebo_seeds))}): what no effect looks like"
        )


def condition_text(patterns: Sequence[Pattern]) -> str:
    """Return a condition in words, such as `objective = chip or hdpo`."""
    return ", or ".join(
        " and ".join(
            f"{factor} = {' or '.join(sorted(levels))}" for factor, levels in pattern.items()
        )
        for pattern in patterns
    )


def _each_once(cells: Iterator[Cell]) -> list[Cell]:
    return [dict(items) for items in dict.fromkeys(tuple(cell.items()) for cell in cells)]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The grid, patterns, cells and baseline that a study file defines."""

    written: StudyFile
    grid: Grid
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    cells: tuple[Cell, ...] = ()  # empty if there is a problem, which is reported
    left_out: int = 0
    baseline: Cell | None = None  # as `cells`

    def cell(self, given: Mapping[str, Any], where: str, wrong: Wrong) -> Cell | None:
        """Return the study's cell that a mapping names, or report a problem and return None."""
        cell = _one_cell(given, self.grid, where, wrong)
        if cell is None or not self.cells or cell in self.cells:
            return cell
        if any(matches(pattern, cell) for pattern in self.exclude):
            wrong(where, "this cell is excluded: choose a cell of the grid")
        elif self.include and not any(matches(pattern, cell) for pattern in self.include):
            wrong(where, "no pattern of `include` has this cell: add one, or choose another cell")
        else:
            wrong(where, f"design {self.written.design} has no such cell: choose one that it has")
        return None


def parse_layout(written: StudyFile, factors: Sequence[Factor], wrong: Wrong) -> Layout:
    """Return a study's cells and baseline, and report problems with them to `wrong`."""
    told: list[str] = []

    def noted(key: str, what: str) -> None:
        told.append(key)
        wrong(key, what)

    plain = Grid(factors=tuple(factors))
    when = _when(written, plain, noted)
    include = _take_patterns(written.include, "include", plain, noted)
    exclude = _take_patterns(written.exclude, "exclude", plain, noted)
    grid = Grid(factors=plain.factors, when=when)
    layout = Layout(written=written, grid=grid, include=include, exclude=exclude)
    if (written.design == "cells") != bool(written.cells):
        noted("cells", "is a list of cells under `design: cells`, and not there under another")
    try:
        grid.order  # noqa: B018 - raises
    except CircularConditionError as circle:
        noted("when", f"{circle} apply only where one another do: break the circle")
    if told or not all(grid.levels.values()) or not factors:
        return layout
    try:
        return _lay_out(layout, told, noted)
    except TooManyCellsError:
        wrong("factors", f"come to more than {LARGEST:,} cells: take fewer levels, or a `design`")
        return layout


def _lay_out(layout: Layout, told: Sequence[str], wrong: Wrong) -> Layout:
    """Return a layout with its cells. `told` grows with each problem reported to `wrong`."""
    written, grid = layout.written, layout.grid
    start = None
    if written.baseline is not None:
        start = _one_cell(written.baseline, grid, "baseline", wrong)
    elif written.design != "cells":
        start = first_cell(grid, written.design)
    if start is not None and written.design == "leave_one_out":
        _check_whole(start, grid, wrong)
    designed = _listed(written.cells, grid, wrong) if written.design == "cells" else []
    if told:
        return layout
    if start is not None and written.design != "cells":
        designed = design_cells(grid, written.design, start)
    _check_all_apply(grid, designed, wrong)
    kept = tuple(cell for cell in designed if _is_kept(cell, layout))
    _check_something_left(layout, designed, kept, wrong)
    layout = replace(layout, cells=kept, left_out=len(designed) - len(kept))
    baseline = kept[0] if kept else None
    if kept and start is not None and (written.baseline is not None or _starts(written)):
        baseline = layout.cell(start, "baseline", wrong)
    return replace(layout, baseline=baseline)


def _starts(written: StudyFile) -> bool:
    """Return whether a design varies its baseline."""
    return written.design in ("one_at_a_time", "leave_one_out")


def _is_kept(cell: Cell, layout: Layout) -> bool:
    if layout.include and not any(matches(pattern, cell) for pattern in layout.include):
        return False
    return not any(matches(pattern, cell) for pattern in layout.exclude)


def _when(written: StudyFile, grid: Grid, wrong: Wrong) -> dict[str, tuple[Pattern, ...]]:
    """Return the patterns under which each conditional factor applies."""
    found = {}
    for name, given in written.when.items():
        where = f"when.{name}"
        if name not in grid.levels:
            wrong(where, f"unknown factor: {suggest(name, grid.levels)}")
            continue
        if isinstance(given, list):
            patterns = _take_patterns(given, where, grid, wrong)
        else:
            patterns = _take_patterns([given], where, grid, wrong, several=False)
        if any(name in pattern for pattern in patterns):
            wrong(where, "a factor cannot decide whether it applies itself: name another")
        elif patterns:
            found[name] = patterns
    return found


def _take_patterns(
    given: Sequence[Mapping[str, Any]], where: str, grid: Grid, wrong: Wrong, several: bool = True
) -> tuple[Pattern, ...]:
    """Parse a list of patterns, and leave out those without a known factor and level."""
    found = []
    for place, entry in enumerate(given):
        key = f"{where}[{place}]" if several else where
        if not entry:
            wrong(key, "names no factor: name one and its levels")
            continue
        pattern = _pattern(entry, grid, key, wrong)
        if pattern:
            found.append(pattern)
    return tuple(found)


def _pattern(given: Mapping[str, Any], grid: Grid, where: str, wrong: Wrong) -> Pattern:
    """Parse a pattern: factor -> names of levels. Report unknown factors and levels."""
    pattern = {}
    for name, value in given.items():
        if name not in grid.levels:
            wrong(f"{where}.{name}", f"unknown factor: {suggest(name, grid.levels)}")
            continue
        labels = [level_text(entry) for entry in (value if isinstance(value, list) else [value])]
        known = grid.levels[name]
        unknown = [label for label in labels if known and label not in known]
        for label in unknown:
            wrong(f"{where}.{name}", f"unknown level '{printable(label)}': {suggest(label, known)}")
        if not unknown:
            pattern[name] = frozenset(labels)
    return pattern


def _one_cell(given: Mapping[str, Any], grid: Grid, where: str, wrong: Wrong) -> Cell | None:
    """Return the cell of the grid that a mapping names, or report a problem and return None."""
    kind = "a baseline" if where == "baseline" else "an arm"
    told: list[str] = []

    def noted(key: str, what: str) -> None:
        told.append(key)
        wrong(key, what)

    pattern = _pattern(given, grid, where, noted)
    for name, labels in pattern.items():
        if len(labels) != 1:
            noted(f"{where}.{name}", f"names {len(labels)} levels: {kind} is one cell")
    for name in grid.levels:
        if name not in given and name not in grid.when:
            noted(where, f"names no level of '{name}': {kind} is one cell")
    if told:
        return None
    cell = {name: min(labels) for name, labels in pattern.items()}
    _check_fits(cell, grid, where, noted, kind)
    return None if told else grid.in_order(cell)


def _check_fits(cell: Cell, grid: Grid, where: str, wrong: Wrong, kind: str) -> None:
    for name, surplus in grid.misfits(cell):
        if surplus:
            condition = condition_text(grid.when[name])
            wrong(f"{where}.{name}", f"applies only where {condition}: leave it out here")
        else:
            wrong(where, f"names no level of '{name}': {kind} is one cell")


def _listed(given: Sequence[Mapping[str, Any]], grid: Grid, wrong: Wrong) -> list[Cell]:
    """Return the cells of `cells`. An entry with several levels gives every combination of them."""
    found: list[Cell] = []
    for place, entry in enumerate(given):
        where = f"cells[{place}]"
        pattern = _pattern(entry, grid, where, wrong)
        if set(pattern) != set(entry):
            continue
        names = [name for name in grid.levels if name in pattern]
        levels = [[one for one in grid.levels[name] if one in pattern[name]] for name in names]
        for combination in itertools.product(*levels):
            cell = dict(zip(names, combination, strict=True))
            if any(grid.misfits(cell)):
                _check_fits(cell, grid, where, wrong, "an entry")
                break
            if cell in found:
                text = ", ".join(f"{name} = {level}" for name, level in cell.items())
                wrong(where, f"the cell {text} stands twice: remove one")
            found.append(cell)
    return found


def _check_all_apply(grid: Grid, cells: Sequence[Cell], wrong: Wrong) -> None:
    used = {name for cell in cells for name in cell}
    for name in grid.levels:
        if cells and name not in used:
            condition = condition_text(grid.when[name])
            wrong(f"when.{name}", f"no cell of the study has {condition}: '{name}' never applies")


def _check_something_left(
    layout: Layout, designed: Sequence[Cell], kept: Sequence[Cell], wrong: Wrong
) -> None:
    for place, pattern in enumerate(layout.include):
        if designed and not any(matches(pattern, cell) for cell in designed):
            wrong(f"include[{place}]", f"no cell has {condition_text([pattern])}: remove it")
    if designed and not kept:
        excluded = any(matches(pattern, designed[0]) for pattern in layout.exclude)
        wrong("exclude" if excluded else "include", "leaves no cell: leave out less")


def _check_whole(baseline: Cell, grid: Grid, wrong: Wrong) -> None:
    """Check that the baseline does not have the level that leaves a factor out."""
    for name, level in baseline.items():
        if len(grid.levels[name]) > 1 and level == grid.levels[name][0]:
            wrong(
                f"baseline.{name}",
                f"leave_one_out takes the first level, '{level}', for the factor left out, and "
                "the baseline for the whole: put another level first",
            )
