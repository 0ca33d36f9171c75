"""HallusionBench: yes/no questions on figures."""

from chip_core.evaluation.benchmarks.hallusionbench import items as items
