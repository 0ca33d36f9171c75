"""Preference pairs, rejected images, batches."""

from chip_core.data.source import identity, problem

__all__ = ["identity", "problem"]
