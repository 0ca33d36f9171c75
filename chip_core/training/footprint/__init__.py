"""Estimate the memory and the operations of a training step without a model's weights."""
