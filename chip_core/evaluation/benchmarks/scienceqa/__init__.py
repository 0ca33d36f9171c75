"""ScienceQA (test): multiple choice."""

from chip_core.evaluation.benchmarks.scienceqa import items as items
