"""Build and write the report of a study."""
