"""Where a model puts images, true descriptions and hallucinated ones, and how far apart."""
