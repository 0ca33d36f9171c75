"""Store a study's files in a storage that machines share."""
