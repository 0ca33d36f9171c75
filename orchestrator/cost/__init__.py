"""Estimate a study's cost before it runs: time, memory, disk, price, power."""
