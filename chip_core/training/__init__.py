"""The training of one trial: steps, optimizer, checkpoints."""
