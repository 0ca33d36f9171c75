"""Measure each kind of work briefly on this machine."""
