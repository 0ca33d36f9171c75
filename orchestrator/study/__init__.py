"""Study files: their schema, their design, their search."""
