"""Checks of a cluster file, one subject per module."""
