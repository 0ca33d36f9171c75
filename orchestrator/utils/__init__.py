"""Utilities for every package."""
