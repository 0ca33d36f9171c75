"""The parts of a run: jobs, their events, retries, limits, progress."""
