"""Define the commands of chip-ablate, each a few lines around the code that does it."""
