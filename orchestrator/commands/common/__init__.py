"""Options, types of option values and output that commands share."""
