"""LLaVA-Bench in the Wild: answers rated beside reference answers."""

from chip_core.evaluation.benchmarks.llava_bench import items as items
