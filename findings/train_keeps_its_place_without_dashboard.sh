#!/usr/bin/env bash
# Ray Train: where the process that called `fit` is killed, the workers go, and their placement group
# stays, with all its CPUs, as long as Ray runs, if Ray was started without its dashboard. The next
# run that asks for them never begins. Train's actor that frees it (PlacementGroupCleaner) asks the
# dashboard's State API whether the run still has its controller, and asks again where there is none.
#
# Seen with Ray 2.60.0, Python 3.11, a minute after the kill:
#   include_dashboard=False: 1 placement group, include_dashboard=True: 0
# Ends with 1 where that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 'ray[default,train]==2.60.0'
cat > "$folder/place.py" <<'PY'
import sys
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util import placement_group_table


def groups():
    return sum(group["state"] == "CREATED" for group in placement_group_table().values())


@ray.remote(num_cpus=0)
class Caller:
    def train(self, folder):
        TorchTrainer(
            lambda: time.sleep(3600),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=folder),
        ).fit()


dashboard = sys.argv[2] == "1"
ray.init(num_cpus=2, include_dashboard=dashboard, log_to_driver=False)
caller = Caller.remote()
caller.train.remote(sys.argv[1])
while ray.available_resources().get("CPU", 0) > 0:
    time.sleep(1)
time.sleep(30)  # the workers begin
assert groups() == 1
ray.kill(caller)
time.sleep(60)
left = groups()
print(f"include_dashboard={dashboard}: {left} placement groups")
sys.exit(left != (0 if dashboard else 1))
PY
"$folder/venv/bin/python" "$folder/place.py" "$folder" 0
"$folder/venv/bin/python" "$folder/place.py" "$folder" 1
