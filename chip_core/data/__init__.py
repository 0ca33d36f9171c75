"""Preference pairs, rejected images, batches."""

from chip_core.data.formats.extra_columns import find_objective_problem, row_requirements
from chip_core.data.source import count_rows, find_source_problem, identity

__all__ = [
    "count_rows",
    "identity",
    "find_objective_problem",
    "find_source_problem",
    "row_requirements",
]
