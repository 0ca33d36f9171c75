"""What a step of a training takes of memory and computes, told without a model's weights."""
