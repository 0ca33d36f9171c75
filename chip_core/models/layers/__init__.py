"""How a model's layers are computed: again in the backward pass, or compiled."""
