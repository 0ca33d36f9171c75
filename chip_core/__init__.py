"""CHiP: train and score one model with cross-modal hierarchical preference optimization."""
