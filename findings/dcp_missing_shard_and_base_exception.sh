#!/usr/bin/env bash
# torch.distributed.checkpoint with its Hugging Face (safetensors) storage, two workers:
# 1. A checkpoint without the shard that has a tensor's first rows is loaded silently: the size
#    is taken from the existing shards, and those rows keep their values from before the load. A
#    checkpoint without the last rows is refused.
# 2. Every failure in `save` or `load` is raised as CheckpointException, which is a BaseException but not
#    an Exception: `except Exception` around a save does not catch that a folder cannot be written.
# Exits 0 while this holds, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > "$folder/worker.py" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
kept = distribute_tensor(torch.arange(1.0, 5.0), mesh, [Shard(0)])
for name in ("first", "last"):
    writer = dcp.HuggingFaceStorageWriter(str(folder / name), save_distributed=True)
    dcp.save({"weight": kept}, storage_writer=writer)
(folder / "file").touch()
dist.barrier()
try:
    writer = dcp.HuggingFaceStorageWriter(str(folder / "file" / "below"), save_distributed=True)
    dcp.save({"weight": kept}, storage_writer=writer)
    failed = None
except BaseException as error:
    failed = error
said = type(failed).__name__
print(f"rank {dist.get_rank()}: below a file: {said}, an Exception: {isinstance(failed, Exception)}")
changed = failed is None or isinstance(failed, Exception)
dist.barrier()
rank = dist.get_rank()
dist.destroy_process_group()
if rank == 0:
    print(f"torch {torch.__version__}")
    for name, lost in (("first", 1), ("last", 2)):
        next((folder / name).glob(f"shard-{lost:05d}-*")).unlink()
        weight = torch.zeros(4)
        try:
            reader = dcp.HuggingFaceStorageReader(str(folder / name))
            dcp.load({"weight": weight}, storage_reader=reader)
            seen = str(weight.tolist())
        except BaseException as error:
            seen = f"refused ({type(error).__name__})"
        print(f"the {name} rows' shard is gone: {seen}")
        expected = "[0.0, 0.0, 3.0, 4.0]" if name == "first" else "refused (CheckpointException)"
        changed = changed or seen != expected
sys.exit(1 if changed else 0)
PYTHON
"$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 \
  "$folder/worker.py" "$folder" 2>"$folder/errors" || { tail -20 "$folder/errors"; exit 1; }
