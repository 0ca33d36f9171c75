"""Preference pairs, rejected images, batches."""

from chip_core.data.source import count, identity, problem

__all__ = ["count", "identity", "problem"]
