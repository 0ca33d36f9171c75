"""Generate a model's answers to benchmark questions, and score them."""

from chip_core.evaluation import benchmarks as benchmarks
from chip_core.evaluation.task import BENCHMARKS

__all__ = ["BENCHMARKS"]
