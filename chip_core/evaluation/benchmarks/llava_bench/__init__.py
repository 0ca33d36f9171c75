"""LLaVA-Bench in the Wild: 60 questions on 24 pictures."""

from chip_core.evaluation.benchmarks.llava_bench import items as items
from chip_core.evaluation.benchmarks.llava_bench import score as score
