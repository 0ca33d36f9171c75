"""The state of a work directory: the ledger and what is derived from it."""
