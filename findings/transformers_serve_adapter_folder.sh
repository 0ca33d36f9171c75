#!/usr/bin/env bash
# `transformers serve` and a PEFT adapter:
# `AutoModelForCausalLM.from_pretrained(FOLDER)` loads a folder that PEFT wrote: it reads
# adapter_config.json, loads the base model that it names, and adds the adapter to it. `transformers
# serve` uses the same classes to load any folder that a request names, but answers HTTP 200 for the base
# model's folder and HTTP 500 for the adapter's. So merge an arm of a LoRA study before you serve it.
# Exits 0 while this holds, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 "transformers[serving]==5.24.0" peft==0.21.2 numpy==2.4.6
cat > "$folder/meet.py" <<'PYTHON'
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import peft
import tokenizers
import torch
import transformers

here = pathlib.Path(__file__).parent
base, adapter = here / "base", here / "adapter"
words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", "user", "a", "b", "c"])}
core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)
tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}"
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )
)
model.save_pretrained(base)
tokenizer.save_pretrained(base)
adapted = peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(target_modules=["q_proj"])
)
adapted.save_pretrained(adapter)
tokenizer.save_pretrained(adapter)
loaded = transformers.AutoModelForCausalLM.from_pretrained(adapter)
has_adapter = any("lora_" in name for name, _ in loaded.named_parameters())

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
program = [str(pathlib.Path(sys.executable).with_name("transformers")), "serve"]
options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
server = subprocess.Popen(
    program + options,
    env=os.environ | {"HF_HUB_OFFLINE": "1"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)


def status(name):
    body = {"model": str(name), "max_tokens": 4, "messages": [{"role": "user", "content": "a b"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        return urllib.request.urlopen(request, timeout=300).status
    except urllib.error.HTTPError as error:
        return error.code


try:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    plain, served = status(base), status(adapter)
finally:
    server.terminate()
    server.wait()
print("transformers", transformers.__version__, "peft", peft.__version__, "torch", torch.__version__)
print(f"from_pretrained(adapter) has the adapter: {has_adapter}")
print(f"transformers serve: base folder HTTP {plain}, adapter folder HTTP {served}")
sys.exit(not (has_adapter and plain == 200 and served == 500))
PYTHON
"$folder/venv/bin/python" "$folder/meet.py" 2>/dev/null
