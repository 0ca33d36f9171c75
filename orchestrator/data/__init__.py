"""Check data sets and benchmark folders."""
