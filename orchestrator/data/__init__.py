"""What data sets and benchmark folders hold."""
