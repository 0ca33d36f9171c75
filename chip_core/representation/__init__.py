"""A model's representations of images and of true and hallucinated texts, and their distances."""
