"""The reference's outputs for every sample, computed once and stored for every trial."""
