"""Score a training's models at intermediate steps, and pick the one that answers `report`."""
