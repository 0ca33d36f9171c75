#!/usr/bin/env bash
# Tune's TuneReportCallback: a report that is in its queue as the trial's function ends stops the
# trial for good, without an error.
#
# Ray 2.60.0 (Tune, Train), torch 2.13.0, Python 3.11, Linux. A Tune function runs a TorchTrainer of one
# worker with ray.tune.integration.ray_train.TuneReportCallback, as Ray's guide has it. The worker
# makes two reports and returns. A Tune callback takes 60 s over the first report, as one does that
# writes to a slow server: meanwhile the second report comes, the worker ends, and so does the function.
# What is expected: both reports reach Tune, and the run ends; Train and the callback take 70 s or so.
# What is seen: the run is ended by the limit of 300 s. The stacks of the trial's process after 200 s
# show why: its main thread has taken the second report from the callback's queue and waits to put it
# into a queue of one place that it alone empties, and in which the function's end lies already.
#   main thread: step -> get_next -> _get_result_from_queues -> report -> queue.put
# A queue of one's own that the function empties until `fit` has returned has no such end.
# Exits with 1 where that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq "ray[train,tune]==2.60.0" torch==2.13.0
export RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR="$folder"
cd "$folder"

cat >run.py <<'PYTHON'
import faulthandler
import sys
import time

import ray
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

folder = sys.argv[1]


def work(config):
    train.report({"loss": 2.0})
    train.report({"loss": 1.0})


def trial(config):
    stacks = open(f"{folder}/stacks.txt", "w")
    faulthandler.dump_traceback_later(200, file=stacks)
    TorchTrainer(
        work,
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(
            name="train", storage_path=f"{folder}/train", callbacks=[TuneReportCallback()]
        ),
    ).fit()
    print("the worker's run has ended, and so does the function", file=sys.stderr, flush=True)


class Slow(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        print("report:", result.get("loss"), flush=True)
        if result.get("loss") == 2.0:
            time.sleep(60)


ray.init("local", num_cpus=2, include_dashboard=False)
tune.Tuner(
    tune.with_resources(trial, {"cpu": 0.1}),
    run_config=tune.RunConfig(
        name="tune", storage_path=f"{folder}/tune", verbose=0, callbacks=[Slow()]
    ),
).fit()
print("the run has ended", flush=True)
PYTHON

"$folder/venv/bin/python" -c 'import ray, torch; print("ray", ray.__version__, "torch", torch.__version__)'
code=0
timeout --kill-after=20 300 "$folder/venv/bin/python" run.py "$folder" >out.log 2>err.log || code=$?
grep "^report" out.log
echo "exit code of the run: $code (124: ended by the limit)"
grep -A 12 "most recent call first" stacks.txt | grep -E "Thread|File" | sed 's/.*site-packages.//' || true

[ "$code" = 124 ] && [ "$(grep -c '^report' out.log)" = 1 ]
grep -q "and so does the function" err.log
grep -q "_get_result_from_queues" stacks.txt
