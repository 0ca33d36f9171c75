"""Plan the trials of a study."""
