"""MMHal-Bench: questions that invite hallucination."""

from chip_core.evaluation.benchmarks.mmhal import items as items
