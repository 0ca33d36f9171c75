"""Expand factors to cells: `when`, `design`, `cells`, `include`, `exclude`, `baseline`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from chip_core.utils.errors import to_printable
from chip_core.utils.registry import suggest
from orchestrator.study.metrics import ProblemReporter
from orchestrator.study.model import Cell, Design, Factor, Pattern, Study, format_level, matches
from orchestrator.study.schema import StudyFile

#: More cells than this are a mistake, and would fill the memory before it is reported.
MAX_CELLS = 200_000


class TooManyCellsError(Exception):
    """The factors give more than `MAX_CELLS` cells."""


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
    def dependency_order(self) -> tuple[str, ...]:
        """The factors, each after the ones that decide whether it applies.

        Raises:
            CircularConditionError: there is no such order; names the factors in the circle.
        """
        remaining, ordered = list(self.levels), []
        while remaining:
            ready = [
                name for name in remaining if not self._condition_factors(name) & set(remaining)
            ]
            if not ready:
                raise CircularConditionError(", ".join(remaining))
            ordered.append(ready[0])  # one at a time, to keep the file's order where possible
            remaining.remove(ready[0])
        return tuple(ordered)

    def applies(self, name: str, cell: Mapping[str, str]) -> bool:
        """Return whether a factor applies in a cell that has the factors that decide it."""
        conditions = self.when.get(name)
        return conditions is None or any(matches(pattern, cell) for pattern in conditions)

    def expand(self, levels_by_factor: Mapping[str, Sequence[str]] | None = None) -> list[Cell]:
        """Return every cell of the grid, or of a part of it, in the file's order.

        Args:
            levels_by_factor: the levels to use; factors that are not named use all of theirs.

        Raises:
            TooManyCellsError: there are more than `MAX_CELLS`.
        """
        cells: list[Cell] = [{}]
        for name in self.dependency_order:
            levels = (levels_by_factor or {}).get(name, self.levels[name])
            conditional = name in self.when
            expanded = (
                new_cell
                for cell in cells
                for new_cell in (
                    [cell]
                    if conditional and not self.applies(name, cell)
                    else [{**cell, name: level} for level in levels]
                )
            )
            cells = list(itertools.islice(expanded, MAX_CELLS + 1))
            if len(cells) > MAX_CELLS:
                raise TooManyCellsError
        return cells if self.dependency_order == tuple(self.levels) else self._sort_cells(cells)

    def find_mismatches(self, levels_by_factor: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
        """Yield (factor, surplus) for each missing factor and each that does not apply.

        A mapping without such factors is a cell.

        Args:
            levels_by_factor: factor -> level.
        """
        cell: dict[str, str] = {}
        for name in self.dependency_order:
            if not self.applies(name, cell):
                if name in levels_by_factor:
                    yield name, True
            elif name in levels_by_factor:
                cell[name] = levels_by_factor[name]
            else:
                yield name, False

    def sort_factors(self, cell: Mapping[str, str]) -> Cell:
        """Return a cell with its factors in the file's order."""
        return {name: cell[name] for name in self.levels if name in cell}

    def _condition_factors(self, name: str) -> set[str]:
        return {factor for pattern in self.when.get(name, ()) for factor in pattern}

    def _sort_cells(self, cells: list[Cell]) -> list[Cell]:
        level_index = {
            (name, level): number
            for name, levels in self.levels.items()
            for number, level in enumerate(levels)
        }
        names = list(self.levels)
        ordered = [self.sort_factors(cell) for cell in cells]
        return sorted(
            ordered,
            key=lambda cell: [
                level_index[name, cell[name]] if name in cell else -1 for name in names
            ],
        )


def first_cell(grid: Grid, design: Design) -> Cell:
    """Return the cell that a design starts from if the file has no `baseline`.

    It has the first level of each factor, or the last under `leave_one_out`, which starts from the
    full configuration.
    """
    takes_last = design == "leave_one_out"
    return grid.expand({name: levels[-1:] if takes_last else levels[:1]
                        for name, levels in grid.levels.items()})[0]  # fmt: skip


def design_cells(grid: Grid, design: Design, baseline: Cell) -> list[Cell]:
    """Return the cells of any design but `cells`.

    A factor that applies only because another factor changed takes all of its levels.

    Raises:
        TooManyCellsError: as `Grid.expand`.
    """
    if design == "grid":
        return grid.expand()
    cell_groups = [[baseline]]
    for name, level in baseline.items():
        levels = grid.levels[name]
        alternatives = levels[:1] if design == "leave_one_out" else levels
        fixed = {factor: [kept] for factor, kept in baseline.items()}
        cell_groups += [
            grid.expand({**fixed, name: [alternative]})
            for alternative in alternatives
            if alternative != level
        ]
    return _deduplicate(itertools.chain.from_iterable(cell_groups))


def iter_layout_notes(study: Study) -> Iterator[str]:
    """Yield notes on the design, the cells left out, the conditional factors and the placebo."""
    if study.design != "grid":
        baseline_text = ", ".join(f"{factor} = {level}" for factor, level in study.baseline.items())
        description = {
            "one_at_a_time": f"{baseline_text}, and each cell that differs from it in one factor",
            "leave_one_out": (
                f"{baseline_text}, and each factor put back to its first level in turn"
            ),
            "cells": "the cells that the file lists",
        }[study.design]
        yield f"design {study.design}: {description}"
    if study.excluded_count:
        cells = "1 cell" if study.excluded_count == 1 else f"{study.excluded_count} cells"
        yield f"left out by include and exclude: {cells}"
    for name, patterns in study.when.items():
        missing_count = sum(name not in cell for cell in study.cells)
        cells = "1 cell goes" if missing_count == 1 else f"{missing_count} cells go"
        yield f"{name} applies only where {format_condition(patterns)}: {cells} without it"
    if study.placebo:
        yield (
            "placebo: the baseline's configuration with its own seeds "
            f"({', '.join(map(str, study.placebo_seeds))}), to show what no effect looks like"
        )


def format_condition(patterns: Sequence[Pattern]) -> str:
    """Return a condition in words, such as `objective = chip or hdpo`."""
    return ", or ".join(
        " and ".join(
            f"{factor} = {' or '.join(sorted(levels))}" for factor, levels in pattern.items()
        )
        for pattern in patterns
    )


def _deduplicate(cells: Iterator[Cell]) -> list[Cell]:
    return [dict(items) for items in dict.fromkeys(tuple(cell.items()) for cell in cells)]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The grid, patterns, cells and baseline that a study file defines."""

    study_file: StudyFile
    grid: Grid
    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    cells: tuple[Cell, ...] = ()  # empty if there is a problem, which is reported
    excluded_count: int = 0
    baseline: Cell | None = None  # as `cells`

    def find_cell(
        self, raw_cell: Mapping[str, Any], key_path: str, report_problem: ProblemReporter
    ) -> Cell | None:
        """Return the study's cell that a mapping names, or report a problem and return None."""
        cell = _parse_cell(raw_cell, self.grid, key_path, report_problem)
        if cell is None or not self.cells or cell in self.cells:
            return cell
        if any(matches(pattern, cell) for pattern in self.exclude):
            report_problem(key_path, "this cell is excluded: choose a cell of the grid")
        elif self.include and not any(matches(pattern, cell) for pattern in self.include):
            report_problem(
                key_path, "no pattern of `include` has this cell: add one, or choose another cell"
            )
        else:
            report_problem(
                key_path,
                f"design {self.study_file.design} has no such cell: choose one that it has",
            )
        return None


def parse_layout(
    study_file: StudyFile, factors: Sequence[Factor], report_problem: ProblemReporter
) -> Layout:
    """Return a study's cells and baseline, and report problems with them to `report_problem`."""
    problem_keys: list[str] = []

    def note_problem(key: str, problem: str) -> None:
        problem_keys.append(key)
        report_problem(key, problem)

    unconditional_grid = Grid(factors=tuple(factors))
    when = _parse_conditions(study_file, unconditional_grid, note_problem)
    include = _parse_patterns(study_file.include, "include", unconditional_grid, note_problem)
    exclude = _parse_patterns(study_file.exclude, "exclude", unconditional_grid, note_problem)
    grid = Grid(factors=unconditional_grid.factors, when=when)
    layout = Layout(study_file=study_file, grid=grid, include=include, exclude=exclude)
    if (study_file.design == "cells") != bool(study_file.cells):
        note_problem(
            "cells", "is required under `design: cells`, and not allowed under another design"
        )
    try:
        grid.dependency_order  # noqa: B018 - raises
    except CircularConditionError as error:
        note_problem("when", f"{error} depend on each other: break the circle")
    if problem_keys or not all(grid.levels.values()) or not factors:
        return layout
    try:
        return _resolve_cells(layout, problem_keys, note_problem)
    except TooManyCellsError:
        report_problem(
            "factors", f"give more than {MAX_CELLS:,} cells: use fewer levels, or a `design`"
        )
        return layout


def _resolve_cells(
    layout: Layout, problem_keys: Sequence[str], report_problem: ProblemReporter
) -> Layout:
    """Return a layout with its cells. `problem_keys` grows with each problem reported."""
    study_file, grid = layout.study_file, layout.grid
    start_cell = None
    if study_file.baseline is not None:
        start_cell = _parse_cell(study_file.baseline, grid, "baseline", report_problem)
    elif study_file.design != "cells":
        start_cell = first_cell(grid, study_file.design)
    if start_cell is not None and study_file.design == "leave_one_out":
        _check_baseline_levels(start_cell, grid, report_problem)
    designed_cells = (
        _parse_cells(study_file.cells, grid, report_problem) if study_file.design == "cells" else []
    )
    if problem_keys:
        return layout
    if start_cell is not None and study_file.design != "cells":
        designed_cells = design_cells(grid, study_file.design, start_cell)
    _check_factors_used(grid, designed_cells, report_problem)
    kept_cells = tuple(cell for cell in designed_cells if _is_kept(cell, layout))
    _check_cells_left(layout, designed_cells, kept_cells, report_problem)
    layout = replace(layout, cells=kept_cells, excluded_count=len(designed_cells) - len(kept_cells))
    baseline = kept_cells[0] if kept_cells else None
    if (
        kept_cells
        and start_cell is not None
        and (study_file.baseline is not None or _varies_baseline(study_file))
    ):
        baseline = layout.find_cell(start_cell, "baseline", report_problem)
    return replace(layout, baseline=baseline)


def _varies_baseline(study_file: StudyFile) -> bool:
    """Return whether a design varies its baseline."""
    return study_file.design in ("one_at_a_time", "leave_one_out")


def _is_kept(cell: Cell, layout: Layout) -> bool:
    if layout.include and not any(matches(pattern, cell) for pattern in layout.include):
        return False
    return not any(matches(pattern, cell) for pattern in layout.exclude)


def _parse_conditions(
    study_file: StudyFile, grid: Grid, report_problem: ProblemReporter
) -> dict[str, tuple[Pattern, ...]]:
    """Return the patterns under which each conditional factor applies."""
    conditions = {}
    for name, raw_patterns in study_file.when.items():
        key_path = f"when.{name}"
        if name not in grid.levels:
            report_problem(key_path, f"unknown factor: {suggest(name, grid.levels)}")
            continue
        if isinstance(raw_patterns, list):
            patterns = _parse_patterns(raw_patterns, key_path, grid, report_problem)
        else:
            patterns = _parse_patterns(
                [raw_patterns], key_path, grid, report_problem, is_list=False
            )
        if any(name in pattern for pattern in patterns):
            report_problem(key_path, "a factor cannot depend on itself: name another")
        elif patterns:
            conditions[name] = patterns
    return conditions


def _parse_patterns(
    raw_patterns: Sequence[Mapping[str, Any]],
    key_path: str,
    grid: Grid,
    report_problem: ProblemReporter,
    is_list: bool = True,
) -> tuple[Pattern, ...]:
    """Parse a list of patterns, and leave out those without a known factor and level."""
    patterns = []
    for index, entry in enumerate(raw_patterns):
        key = f"{key_path}[{index}]" if is_list else key_path
        if not entry:
            report_problem(key, "names no factor: name one and its levels")
            continue
        pattern = _parse_pattern(entry, grid, key, report_problem)
        if pattern:
            patterns.append(pattern)
    return tuple(patterns)


def _parse_pattern(
    raw_pattern: Mapping[str, Any], grid: Grid, key_path: str, report_problem: ProblemReporter
) -> Pattern:
    """Parse a pattern: factor -> names of levels. Report unknown factors and levels."""
    pattern = {}
    for name, value in raw_pattern.items():
        if name not in grid.levels:
            report_problem(f"{key_path}.{name}", f"unknown factor: {suggest(name, grid.levels)}")
            continue
        labels = [format_level(entry) for entry in (value if isinstance(value, list) else [value])]
        known_levels = grid.levels[name]
        unknown_labels = [label for label in labels if known_levels and label not in known_levels]
        for label in unknown_labels:
            report_problem(
                f"{key_path}.{name}",
                f"unknown level '{to_printable(label)}': {suggest(label, known_levels)}",
            )
        if not unknown_labels:
            pattern[name] = frozenset(labels)
    return pattern


def _parse_cell(
    raw_cell: Mapping[str, Any], grid: Grid, key_path: str, report_problem: ProblemReporter
) -> Cell | None:
    """Return the cell of the grid that a mapping names, or report a problem and return None."""
    kind = "a baseline" if key_path == "baseline" else "an arm"
    problem_keys: list[str] = []

    def note_problem(key: str, what: str) -> None:
        problem_keys.append(key)
        report_problem(key, what)

    pattern = _parse_pattern(raw_cell, grid, key_path, note_problem)
    for name, labels in pattern.items():
        if len(labels) != 1:
            note_problem(f"{key_path}.{name}", f"names {len(labels)} levels: {kind} is one cell")
    for name in grid.levels:
        if name not in raw_cell and name not in grid.when:
            note_problem(key_path, f"names no level of '{name}': {kind} is one cell")
    if problem_keys:
        return None
    cell = {name: min(labels) for name, labels in pattern.items()}
    _check_applicability(cell, grid, key_path, note_problem, kind)
    return None if problem_keys else grid.sort_factors(cell)


def _check_applicability(
    cell: Cell, grid: Grid, key_path: str, report_problem: ProblemReporter, kind: str
) -> None:
    for name, surplus in grid.find_mismatches(cell):
        if surplus:
            condition = format_condition(grid.when[name])
            report_problem(
                f"{key_path}.{name}", f"applies only where {condition}: leave it out here"
            )
        else:
            report_problem(key_path, f"names no level of '{name}': {kind} is one cell")


def _parse_cells(
    raw_cells: Sequence[Mapping[str, Any]], grid: Grid, report_problem: ProblemReporter
) -> list[Cell]:
    """Return the cells of `cells`. An entry with several levels gives every combination of them."""
    cells: list[Cell] = []
    for index, entry in enumerate(raw_cells):
        key_path = f"cells[{index}]"
        pattern = _parse_pattern(entry, grid, key_path, report_problem)
        if set(pattern) != set(entry):
            continue
        names = [name for name in grid.levels if name in pattern]
        levels = [
            [level for level in grid.levels[name] if level in pattern[name]] for name in names
        ]
        for combination in itertools.product(*levels):
            cell = dict(zip(names, combination, strict=True))
            if any(grid.find_mismatches(cell)):
                _check_applicability(cell, grid, key_path, report_problem, "an entry")
                break
            if cell in cells:
                text = ", ".join(f"{name} = {level}" for name, level in cell.items())
                report_problem(key_path, f"the cell {text} is listed twice: remove one")
            cells.append(cell)
    return cells


def _check_factors_used(grid: Grid, cells: Sequence[Cell], report_problem: ProblemReporter) -> None:
    used_factors = {name for cell in cells for name in cell}
    for name in grid.levels:
        if cells and name not in used_factors:
            condition = format_condition(grid.when[name])
            report_problem(
                f"when.{name}", f"no cell of the study has {condition}: '{name}' never applies"
            )


def _check_cells_left(
    layout: Layout,
    designed_cells: Sequence[Cell],
    kept_cells: Sequence[Cell],
    report_problem: ProblemReporter,
) -> None:
    for index, pattern in enumerate(layout.include):
        if designed_cells and not any(matches(pattern, cell) for cell in designed_cells):
            report_problem(
                f"include[{index}]", f"no cell has {format_condition([pattern])}: remove it"
            )
    if designed_cells and not kept_cells:
        excluded = any(matches(pattern, designed_cells[0]) for pattern in layout.exclude)
        report_problem("exclude" if excluded else "include", "leaves no cell: leave out fewer")


def _check_baseline_levels(baseline: Cell, grid: Grid, report_problem: ProblemReporter) -> None:
    """Check that the baseline does not have the level that leaves a factor out."""
    for name, level in baseline.items():
        if len(grid.levels[name]) > 1 and level == grid.levels[name][0]:
            report_problem(
                f"baseline.{name}",
                f"under leave_one_out, the first level, '{level}', means that the factor is left "
                "out, and the baseline leaves nothing out: put another level first",
            )
