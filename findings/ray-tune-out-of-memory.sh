#!/usr/bin/env bash
# Where Ray's memory monitor ends the worker of one trial, the whole run of Ray Tune ends.
#
# Ray 2.60.0, Python 3.11, Linux. What is expected: that trial has failed, with OutOfMemoryError, and
# the others go on, as they do where a worker dies of anything else.
# What is seen: Tuner.fit() raises "RuntimeError: Caught unexpected exception", from an
# OutOfMemoryError; a trial that ran beside it and needed next to no memory is ended too. Tune's actor
# manager knows RayActorError and RayTaskError, and OutOfMemoryError is neither.
# Exits with 1 where that has changed.
set -euo pipefail

folder=$(mktemp -d /tmp/f-XXXXXX) # a short path: Ray's sockets lie in it
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq "ray[tune]==2.60.0" psutil==7.2.2
export RAY_TMPDIR=$folder RAY_USAGE_STATS_ENABLED=0 RAY_AIR_NEW_OUTPUT=0

cat >"$folder/script.py" <<'PYTHON'
import os
import sys
import time

import psutil

memory = psutil.virtual_memory()
used = 1 - memory.available / memory.total
# The monitor acts at a threshold that is a setting: just above what is used now.
os.environ["RAY_memory_usage_threshold"] = f"{used + 0.05:.3f}"

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError


def trial(config):
    held = []
    for step in range(120):
        if config["grows"] and psutil.Process().memory_info().rss < 0.15 * memory.total:
            held.append(b"x" * 100_000_000)
        tune.report({"step": step})
        time.sleep(0.5)


print("ray", ray.__version__, "python", sys.version.split()[0])
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2, log_to_driver=False)
tuner = tune.Tuner(
    trial,
    param_space={"grows": tune.grid_search([False, True])},
    run_config=tune.RunConfig(storage_path=os.environ["RAY_TMPDIR"], verbose=0),
)
error = None
try:
    tuner.fit()
except RuntimeError as raised:
    error = raised
ray.shutdown()
cause = type(error.__cause__)
print("fit() raised:", repr(error)[:60], "from", cause.__name__)
print("an actor's or a task's error:", issubclass(cause, (RayActorError, RayTaskError)))
sys.exit(cause is not OutOfMemoryError)
PYTHON
"$folder/venv/bin/python" "$folder/script.py" 2>"$folder/log" || {
    tail -3 "$folder/log"
    exit 1
}
