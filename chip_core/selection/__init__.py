"""Score the models of a training along it, and pick the one that answers `report`."""
