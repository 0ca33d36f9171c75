#!/usr/bin/env bash
# Where Ray's dashboard is off, the place of a Train run whose driver was killed is never free again.
#
# Ray 2.60.0 (train, default), Python 3.11, Linux. An actor runs a DataParallelTrainer with two workers,
# which take both CPUs, and is killed with SIGKILL. What is expected: the workers' placement group is
# removed, with the dashboard or without, as Train's PlacementGroupCleaner is there for that.
# What is seen, 60 s later:
#   include_dashboard=True:  2 of 2 CPUs are free
#   include_dashboard=False: 0 of 2 CPUs are free: the cleaner asks the state API whether the run's
#                            controller lives, nobody answers, and it asks again for ever
# Exits with 1 where that has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq 'ray[default,train]==2.60.0'
cd "$folder"
cat >killed.py <<'PYTHON'
import os, signal, sys, time
import ray


@ray.remote(num_cpus=0)
class Run:
    def pid(self):
        return os.getpid()

    def fit(self):
        from ray.train import ScalingConfig
        from ray.train.data_parallel_trainer import DataParallelTrainer

        DataParallelTrainer(lambda: time.sleep(3600), scaling_config=ScalingConfig(num_workers=2)).fit()


def free():
    return int(ray.available_resources().get("CPU", 0))


def wait_for(cpus, seconds):
    end = time.monotonic() + seconds
    while free() != cpus and time.monotonic() < end:
        time.sleep(1)
    return free() == cpus


ray.init(num_cpus=2, include_dashboard=sys.argv[1] == "True", log_to_driver=False)
run = Run.remote()
pid = ray.get(run.pid.remote())
run.fit.remote()
assert wait_for(0, 300), "the workers were never placed"
time.sleep(20)  # until the run has told its cleaner of the placement group
os.kill(pid, signal.SIGKILL)
wait_for(2, 60)
print(free())
PYTHON
export RAY_USAGE_STATS_ENABLED=0
found=
for dashboard in True False; do
    cpus=$("$folder/venv/bin/python" killed.py "$dashboard" 2>/dev/null | tail -n 1)
    echo "include_dashboard=$dashboard: $cpus of 2 CPUs are free 60 s after the kill"
    found="$found $cpus"
done
[ "$found" = " 2 0" ] || { echo "this has changed"; exit 1; }
