"""Writers of the report's formats, and of the commands' output on a study."""
