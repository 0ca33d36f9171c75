"""Analyse a study's figures: contrasts, corrections, effects, verdicts.

The method, its rules and its known weaknesses are in docs/statistics.md.
"""

from orchestrator.analysis.contrast import Contrast, contrast
from orchestrator.analysis.effects import (
    Comparison,
    Verdict,
    benjamini_hochberg,
    compare_with_baseline,
    holm,
    interactions,
    main_effects,
)
from orchestrator.analysis.power import SeedsNeeded, detectable_difference, seeds_needed
from orchestrator.analysis.prediction_powered import (
    PredictionPoweredEstimate,
    prediction_powered_mean,
)
from orchestrator.analysis.results import MetricResults, StudyArm, StudyResults
from orchestrator.analysis.values import pseudo_values
from orchestrator.analysis.variance import report_pool, seed_correlation

__all__ = [
    "Comparison",
    "Contrast",
    "MetricResults",
    "PredictionPoweredEstimate",
    "SeedsNeeded",
    "StudyArm",
    "StudyResults",
    "Verdict",
    "benjamini_hochberg",
    "compare_with_baseline",
    "contrast",
    "detectable_difference",
    "holm",
    "interactions",
    "main_effects",
    "prediction_powered_mean",
    "pseudo_values",
    "report_pool",
    "seed_correlation",
    "seeds_needed",
]
