"""Configuration of a trial: typed, frozen, with its fingerprint."""
