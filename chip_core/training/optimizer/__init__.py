"""Update the weights: AdamW, fp32 masters of bf16 weights, moments in 8 bits."""
