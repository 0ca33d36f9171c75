"""The commands of chip-ablate, one room each; every one a few lines around what does the work."""
