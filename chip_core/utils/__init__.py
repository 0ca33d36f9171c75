"""Utilities of all other packages: files, errors, processes, seeds."""
