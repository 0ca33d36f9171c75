"""Keep this import path for plug-ins that import chip_core.config.fields' names from here.

A plug-in's source is part of its trials' fingerprints, so it must keep running unchanged.
"""

from chip_core.config.fields import Section, figure

__all__ = ["Section", "figure"]
