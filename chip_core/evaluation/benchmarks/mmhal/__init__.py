"""MMHal-Bench: 96 questions that invite hallucination."""

from chip_core.evaluation.benchmarks.mmhal import items as items
from chip_core.evaluation.benchmarks.mmhal import score as score
