"""Asking a model the questions of a benchmark, and scoring its answers."""

from chip_core.evaluation import benchmarks as benchmarks
from chip_core.evaluation.task import BENCHMARKS

__all__ = ["BENCHMARKS"]
