"""What has been run: the ledger, and what follows from it."""
