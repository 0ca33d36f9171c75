#!/usr/bin/env bash
# transformers: a model loaded with a `key_mapping` that removes a prefix (weights that DDP named
# `module.…`) is complete and correct. But `save_pretrained` writes the prefix back, so the new folder,
# loaded without `key_mapping`, is random in every weight, with only a warning.
#
# Seen with transformers 5.23.0, torch 2.13.0 (CPU), Python 3.11:
#   read with key_mapping: 0 missing; saved and read again: 12 missing, 12 unexpected, not equal
# Exits with 1 once this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", version("transformers"), "torch", version("torch"))
root = Path(sys.argv[1])
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False,
    )
)
wrapped = root / "wrapped"
model.save_pretrained(wrapped)
weights = load_file(wrapped / "model.safetensors")
save_file(
    {f"module.{name}": value for name, value in weights.items()},
    wrapped / "model.safetensors",
    {"format": "pt"},
)

read, found = LlamaForCausalLM.from_pretrained(
    wrapped, key_mapping={r"^module\.": ""}, output_loading_info=True
)
whole = not found["missing_keys"] and all(
    torch.equal(value, weights[name]) for name, value in read.state_dict().items()
)
print("read with key_mapping: whole and equal:", whole)
read.save_pretrained(root / "again")
print("saved as:", min(load_file(root / "again" / "model.safetensors")))
again, found = LlamaForCausalLM.from_pretrained(root / "again", output_loading_info=True)
missing, unexpected = len(found["missing_keys"]), len(found["unexpected_keys"])
equal = all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
print(f"saved and read again: {missing} missing, {unexpected} unexpected, equal: {equal}")
sys.exit(0 if whole and missing == len(weights) and not equal else 1)
PY
