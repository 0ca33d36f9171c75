"""Files, errors, processes, seeds: what every other package uses."""
