"""The formats of a report, and what commands print of a study."""
