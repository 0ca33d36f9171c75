"""Preference pairs from a model itself: sampled answers, ranked, best against worst."""
