"""The cells of a study file: `when`, `design`, `cells`, `include`, `exclude` and `baseline`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chip_core.registry import suggestion
from orchestrator.study import Cell, Factor, Pattern, level_text, matches
from orchestrator.study_cells import (
    LARGEST,
    CircleError,
    Grid,
    TooManyCellsError,
    condition_text,
    first_cell,
    laid_out,
)
from orchestrator.study_declared import Wrong
from orchestrator.study_written import StudyFile


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a study file makes of its factors."""

    written: StudyFile
    grid: Grid
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    cells: tuple[Cell, ...] = ()  # none: something is wrong with them, and told
    left_out: int = 0
    baseline: Cell | None = None  # as `cells`

    def cell(self, given: Mapping[str, Any], where: str, wrong: Wrong) -> Cell | None:
        """Return the study's cell that a mapping names; complain and return None if none."""
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


def take_layout(written: StudyFile, factors: Sequence[Factor], wrong: Wrong) -> Layout:
    """Return a study's cells and baseline; `wrong` is told what is wrong with them."""
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
    except CircleError as circle:
        noted("when", f"{circle} apply only where one another do: break the circle")
    if told or not all(grid.levels.values()) or not factors:
        return layout
    try:
        return _lay_out(layout, told, noted)
    except TooManyCellsError:
        wrong("factors", f"come to more than {LARGEST:,} cells: take fewer levels, or a `design`")
        return layout


def _lay_out(layout: Layout, told: Sequence[str], wrong: Wrong) -> Layout:
    """Return a layout with its cells; `told` grows as `wrong` is told."""
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
        designed = laid_out(grid, written.design, start)
    _check_all_apply(grid, designed, wrong)
    kept = tuple(cell for cell in designed if _is_kept(cell, layout))
    _check_something_left(layout, designed, kept, wrong)
    layout = replace(layout, cells=kept, left_out=len(designed) - len(kept))
    baseline = kept[0] if kept else None
    if kept and start is not None and (written.baseline is not None or _starts(written)):
        baseline = layout.cell(start, "baseline", wrong)
    return replace(layout, baseline=baseline)


def _starts(written: StudyFile) -> bool:
    """Return whether a design is made around its baseline."""
    return written.design in ("one_at_a_time", "leave_one_out")


def _is_kept(cell: Cell, layout: Layout) -> bool:
    if layout.include and not any(matches(pattern, cell) for pattern in layout.include):
        return False
    return not any(matches(pattern, cell) for pattern in layout.exclude)


def _when(written: StudyFile, grid: Grid, wrong: Wrong) -> dict[str, tuple[Pattern, ...]]:
    """Return factor -> the patterns under which it applies."""
    found = {}
    for name, given in written.when.items():
        where = f"when.{name}"
        if name not in grid.levels:
            wrong(where, f"unknown factor: {suggestion(name, grid.levels)}")
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
    """Return patterns as written, without those that name nothing known."""
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
    """Return factor -> names of levels for a mapping as written, complaining of unknown ones."""
    pattern = {}
    for name, value in given.items():
        if name not in grid.levels:
            wrong(f"{where}.{name}", f"unknown factor: {suggestion(name, grid.levels)}")
            continue
        labels = [level_text(entry) for entry in (value if isinstance(value, list) else [value])]
        known = grid.levels[name]
        unknown = [label for label in labels if known and label not in known]
        for label in unknown:
            wrong(f"{where}.{name}", f"unknown level '{label}': {suggestion(label, known)}")
        if not unknown:
            pattern[name] = frozenset(labels)
    return pattern


def _one_cell(given: Mapping[str, Any], grid: Grid, where: str, wrong: Wrong) -> Cell | None:
    """Return the cell of the grid that a mapping names; complain and return None if none."""
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
    """Return the cells of `cells`; an entry with several levels stands for each combination."""
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
    """Check that each factor has something to leave out."""
    for name, level in baseline.items():
        if len(grid.levels[name]) > 1 and level == grid.levels[name][0]:
            wrong(
                f"baseline.{name}",
                f"leave_one_out takes the first level, '{level}', for the factor left out, and "
                "the baseline for the whole: put another level first",
            )
