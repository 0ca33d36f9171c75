"""Keep the path by which plug-ins import what chip_core.evaluation.scorer holds.

A plug-in's source is part of its trials' fingerprints: it must run as it was written.
"""

from chip_core.evaluation.scorer import Scored

__all__ = ["Scored"]
