"""Jobs: description, placement, execution in a process, stopping."""
