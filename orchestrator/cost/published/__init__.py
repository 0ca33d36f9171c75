"""What a study costs before anything ran: operations, and rates that others published."""
