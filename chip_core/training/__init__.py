"""One training: the step, the loop."""
