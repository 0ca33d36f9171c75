"""Where checkpoints, models, answers and reference passes go: all machines reach it."""
