"""What a study's figures can say: contrasts, corrections, effects, verdicts. Pure numpy and scipy.

The method, its rules and its known weaknesses are in docs/statistics.md.
"""

from orchestrator.statistics.contrast import Contrast, contrast
from orchestrator.statistics.corrections import benjamini_hochberg, holm
from orchestrator.statistics.effects import (
    Comparison,
    Verdict,
    interactions,
    main_effects,
    verdicts,
)
from orchestrator.statistics.pool import report_pool
from orchestrator.statistics.power import SeedsNeeded, detectable_difference, seeds_needed
from orchestrator.statistics.results import MetricResults, StudyArm, StudyResults
from orchestrator.statistics.values import pseudo_values
from orchestrator.statistics.variance import seed_correlation

__all__ = [
    "Comparison",
    "Contrast",
    "MetricResults",
    "SeedsNeeded",
    "StudyArm",
    "StudyResults",
    "Verdict",
    "benjamini_hochberg",
    "contrast",
    "detectable_difference",
    "holm",
    "interactions",
    "main_effects",
    "pseudo_values",
    "report_pool",
    "seed_correlation",
    "seeds_needed",
    "verdicts",
]
