"""The embedded world as a benchmark."""

from chip_core.evaluation.benchmarks.shapes import items as items
