#!/usr/bin/env bash
# PEFT's disable_adapter() and FSDP2 with mixed precision, one worker on a CPU:
# A LoRA model is sharded by fully_shard with MixedPrecisionPolicy(param_dtype=bfloat16), and its first
# forward is a reference pass: no_grad, within disable_adapter(). That sets requires_grad of the adapter
# to False, FSDP records what it finds when it first gathers weights, and the first backward of
# the policy fails with RuntimeError (a gradient in bf16 for a weight in fp32). If the policy runs
# first, or if requires_grad is restored within disable_adapter(), the gradients are there.
# Exits 0 while this holds, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.23.0 numpy==2.4.6
cat > "$folder/meet.py" <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")
import peft
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
low = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + self.proj(x).tanh()


def backward(*, policy_first=False, put_back=False):
    torch.manual_seed(0)
    net = torch.nn.Sequential(Layer(), Layer())
    lora = peft.LoraConfig(r=2, target_modules=["proj"], init_lora_weights=False)
    model = peft.get_peft_model(net, lora)
    for layer in model.base_model.model:
        fully_shard(layer, mesh=mesh, mp_policy=low)
    fully_shard(model, mesh=mesh, mp_policy=low)
    x = torch.randn(4, 8)
    if policy_first:
        model(x).sum().backward()
        model.zero_grad()
    marks = [(weight, weight.requires_grad) for weight in model.parameters()]
    with torch.no_grad(), model.disable_adapter():
        if put_back:
            for weight, mark in marks:
                weight.requires_grad_(mark)
        model(x)
    try:
        model(x).sum().backward()
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return f"{sum(weight.grad is not None for weight in trained)} of {len(trained)} gradients"


print(f"torch {torch.__version__}, peft {peft.__version__}")
seen = {
    "reference first": backward(),
    "policy first": backward(policy_first=True),
    "reference first, requires_grad put back": backward(put_back=True),
}
for way, said in seen.items():
    print(f"{way}: {said}")
first, *others = seen.values()
dist.destroy_process_group()
sys.exit(not (first.startswith("RuntimeError") and others == ["4 of 4 gradients"] * 2))
PYTHON
"$folder/venv/bin/python" "$folder/meet.py"
