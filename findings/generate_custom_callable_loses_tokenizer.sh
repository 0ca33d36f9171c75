#!/usr/bin/env bash
# transformers: `generate(custom_generate=function, tokenizer=…)` loses the tokenizer. It is removed
# from the arguments before they are distributed, and passed neither to the stop strings nor to the
# function, even if that has a parameter `tokenizer` (which it does not get). A model whose
# generation config has stop strings, or a call that gives some, then fails with a ValueError that asks
# for the tokenizer that was given; without `custom_generate` the same call runs.
# Workaround: check for stop strings in the function yourself, or leave such models to `generate` alone.
#
# Seen with transformers 5.24.0, torch 2.13.0 (CPU), Python 3.11; a Llama of one layer, random weights:
#   no stop string, generate's own loop: 3 tokens
#   no stop string, a function: 1 token, tokenizer given to it: no
#   a stop string, generate's own loop: 3 tokens
#   a stop string, a function: ValueError, could not locate a tokenizer
# Exits with 1 once this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'transformers==5.24.0' 'torch==2.13.0'
cat > "$folder/loses.py" <<'PY'
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

signs = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {sign: number for number, sign in enumerate([*signs, "</s>"])}
inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
inner.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, eos_token_id=None, pad_token_id=0,
)
model = LlamaForCausalLM(config).eval()
ids = tokenizer("a red ball", return_tensors="pt")["input_ids"]
given = []


def one_token(model, input_ids, logits_processor, stopping_criteria, generation_config,
              tokenizer=None, **others):
    given.append(tokenizer is not None)
    return torch.cat([input_ids, input_ids[:, :1]], dim=1)


def ask(stop, function):
    options = {"stop_strings": [stop]} if stop else {}
    if function:
        options["custom_generate"] = one_token
    try:
        made = model.generate(
            ids, max_new_tokens=3, do_sample=False, tokenizer=tokenizer, **options
        )
    except ValueError as error:
        told = "could not locate a tokenizer" in str(error)
        return f"ValueError, {'could not locate a tokenizer' if told else error}"
    tokens = made.shape[1] - ids.shape[1]
    said = f"{tokens} token{'s' if tokens > 1 else ''}"
    return said + (f", tokenizer given to it: {'yes' if given[-1] else 'no'}" if function else "")


seen = {
    "no stop string, generate's own loop": ask(None, False),
    "no stop string, a function": ask(None, True),
    "a stop string, generate's own loop": ask("never said", False),
    "a stop string, a function": ask("never said", True),
}
for case, what in seen.items():
    print(f"{case}: {what}")
expected = [
    "3 tokens",
    "1 token, tokenizer given to it: no",
    "3 tokens",
    "ValueError, could not locate a tokenizer",
]
sys.exit(list(seen.values()) != expected)
PY
"$folder/venv/bin/python" -W ignore "$folder/loses.py" 2>"$folder/log" || { tail -20 "$folder/log"; exit 1; }
