"""POPE: is this object in the picture?"""

from chip_core.evaluation.benchmarks.pope import items as items
