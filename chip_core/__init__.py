"""CHiP: cross-modal hierarchical preference optimization, one model trained and scored."""
