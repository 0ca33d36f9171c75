"""Preference pairs, rejected images, batches."""

from chip_core.data.formats.further import asks_of, objective_problem
from chip_core.data.source import count, identity, problem

__all__ = ["asks_of", "count", "identity", "objective_problem", "problem"]
