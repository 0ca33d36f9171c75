"""A short measurement of each kind of work on this machine."""
