#!/usr/bin/env bash
# bitsandbytes' Linear4bit on a CPU with AVX512-BF16:
# A frozen NF4 layer that computes in float32 gives one output before and another after a forward pass
# without gradients (torch.no_grad, evaluation mode): that pass repacks the layer's weight in place for a
# kernel of its own, rounds its scales to bfloat16 and sets the type of what is unpacked to bfloat16, and
# every later pass, with gradients too, uses those. So a LoRA training over it (QLoRA) that looks at its
# reference, or answers, between steps trains on another base model from then on; layers in training
# mode stay as they are. On other CPUs nothing is repacked.
# Exits 0 as long as this is so (or the CPU cannot show it), 1 where it is no longer.
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
