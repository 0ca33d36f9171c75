"""Preference pairs, rejected images, batches."""
