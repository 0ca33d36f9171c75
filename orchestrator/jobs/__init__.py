"""One job: what it is, where it goes, how a process runs it, how it is stopped."""
