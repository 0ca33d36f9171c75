#!/usr/bin/env bash
# bitsandbytes' Linear4bit on a CPU with AVX512-BF16:
# A frozen NF4 layer that computes in float32 gives a different output after a forward pass without
# gradients (torch.no_grad, evaluation mode). That pass repacks the layer's weight in place for a
# kernel of its own, rounds its scales to bfloat16 and sets the unpacked type to bfloat16, and
# every later pass uses those, with gradients too. So a LoRA training on it (QLoRA) that computes its
# reference, or generates answers, between steps trains on another base model from then on. Layers in
# training mode do not change. Other CPUs repack nothing.
# Exits 0 while this holds (or if the CPU cannot show it), 1 once it has changed.
set -euo pipefail
if ! grep -qw avx512_bf16 /proc/cpuinfo; then
    echo "not seen: this CPU has no AVX512-BF16"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cat > "$folder/meet.py" <<'PYTHON'
import sys

import bitsandbytes
import torch

torch.manual_seed(0)


def passes(mode):
    layer = bitsandbytes.nn.Linear4bit(
        64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4"
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        torch.randn(64, 64), requires_grad=False, quant_type="nf4"
    )
    layer = layer.to("cpu").train(mode)
    x = torch.randn(4, 64, requires_grad=True)
    before, weight = layer(x).detach(), layer.weight.data.clone()
    with torch.no_grad():
        layer(x.detach())
    after = layer(x).detach()
    same = layer.weight.data.shape == weight.shape and torch.equal(layer.weight.data, weight)
    return (after - before).abs().max().item(), same, layer.weight.quant_state.dtype


print("torch", torch.__version__, "bitsandbytes", bitsandbytes.__version__)
moved, same, dtype = passes(mode=False)
print(f"evaluation mode: output moved by {moved:.4f}, weight as it was: {same}, unpacked to {dtype}")
kept = passes(mode=True)
print(f"training mode: output moved by {kept[0]:.4f}, weight as it was: {kept[1]}")
sys.exit(not (moved > 1e-4 and not same and dtype == torch.bfloat16 and kept[:2] == (0.0, True)))
PYTHON
"$folder/venv/bin/python" "$folder/meet.py" 2>/dev/null
