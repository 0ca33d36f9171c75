"""POPE: is this object in the picture?"""

from chip_core.evaluation.benchmarks.pope import items as items
from chip_core.evaluation.benchmarks.pope import score as score
