"""The commands of chip-ablate, each a thin layer over the code that does the work."""
