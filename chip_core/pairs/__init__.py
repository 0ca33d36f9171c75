"""Preference pairs from a model itself: sample answers, rank them, pair best with worst."""
