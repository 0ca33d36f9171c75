"""The parts of a run: jobs, events, retries, limits, progress."""
