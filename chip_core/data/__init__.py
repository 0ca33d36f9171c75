"""Preference pairs, rejected images, batches."""

from chip_core.data.formats.extra_columns import objective_problem, row_requirements
from chip_core.data.source import count_rows, identity, problem

__all__ = ["count_rows", "identity", "objective_problem", "problem", "row_requirements"]
