"""MMMU (validation): college-level questions."""

from chip_core.evaluation.benchmarks.mmmu import items as items
