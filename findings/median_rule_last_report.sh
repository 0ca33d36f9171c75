#!/usr/bin/env bash
# Tune's MedianStoppingRule passes over reports without its keys, but not over a trial's last one: then
# the whole run ends with a KeyError at the next report of another trial.
#
# Ray 2.60.0 (Tune), Python 3.11, Linux. A trial reports its loss by step, and at its end once more what is
# not of a step: how it ended. Another trial runs on.
# What is expected: as for the reports before, and as with ASHA, which ends well: a report without
# `time_attr` and `metric` says nothing to the rule.
# What is seen: on_trial_complete keeps the last report whatever it holds.
#   FIFO: 2 trials ended well
#   ASHA: 2 trials ended well
#   median: KeyError: 'step'
# Exits with 1 where that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq "ray[tune]==2.60.0"
export RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR="$folder"
cd "$folder"

cat >run.py <<'PYTHON'
import sys
import time

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

folder = sys.argv[1]
keys = {"time_attr": "step", "metric": "loss", "mode": "min"}
schedulers = {
    "FIFO": FIFOScheduler(),
    "ASHA": ASHAScheduler(**keys, max_t=100),
    "median": MedianStoppingRule(**keys, grace_period=1, min_samples_required=1),
}


def trial(config):
    for step in range(1, config["steps"] + 1):
        tune.report({"step": step, "loss": 1.0 / step})
        time.sleep(0.2)
    tune.report({"outcome": "finished"})


ray.init("local", num_cpus=2, include_dashboard=False)
for name, scheduler in schedulers.items():
    tuner = tune.Tuner(
        trial,
        param_space={"steps": tune.grid_search([2, 40])},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(name=name, storage_path=folder, verbose=0),
    )
    try:
        results = tuner.fit()
    except Exception as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        print(f"{name}: {type(cause).__name__}: {cause}", flush=True)
    else:
        well = sum(result.error is None for result in results)
        print(f"{name}: {well} trials ended well", flush=True)
PYTHON

"$folder/venv/bin/python" -c 'import ray; print("ray", ray.__version__)'
"$folder/venv/bin/python" run.py "$folder" 2>err.log | tee out.log

grep -q "^FIFO: 2 trials ended well" out.log
grep -q "^ASHA: 2 trials ended well" out.log
grep -q "^median: .*KeyError: 'step'" out.log || grep -q "^median: KeyError" out.log
