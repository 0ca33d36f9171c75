"""Build and write a study's report."""
