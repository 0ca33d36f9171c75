"""Study files: schema, design and hyper-parameter search."""
