"""Keep the old import path of chip_core.evaluation.scorer for plug-ins.

A plug-in's source is part of its trials' fingerprints, so it must keep running unchanged.
"""

from chip_core.evaluation.scorer import Scored

__all__ = ["Scored"]
