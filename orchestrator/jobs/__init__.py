"""Jobs: description, stopping, placement, execution in a process."""
