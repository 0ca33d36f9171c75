"""AMBER: descriptions and yes/no questions about 1,004 pictures."""

from chip_core.evaluation.benchmarks.amber import items as items
