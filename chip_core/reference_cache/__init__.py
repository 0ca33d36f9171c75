"""What the reference says of every sample, computed once and kept for every trial."""
