"""Readings of answers and of judges' replies, and language."""
