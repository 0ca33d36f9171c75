"""Checks of a cluster file, one subject a module."""
