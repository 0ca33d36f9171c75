"""Keep the path by which plug-ins import what chip_core.config.fields holds.

A plug-in's source is part of its trials' fingerprints: it must run as it was written.
"""

from chip_core.config.fields import Section, figure

__all__ = ["Section", "figure"]
