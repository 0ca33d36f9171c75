#!/usr/bin/env bash
# Ray Tune: what a Callback raises in `on_trial_start` or `on_trial_result` ends the run: `Tuner.fit`
# raises. What it raises in `on_trial_complete` does not: Tune logs it, takes the trial, which had
# finished, for failed, calls `on_trial_error` of the same callback for it, begins the next trials, and
# `fit` returns. Whoever records results in `on_trial_complete` (a file, a database) and relies on the
# exception where that cannot be written loses them while the run goes on to its end.
# `FailureConfig(fail_fast="raise")` ends the run there too, and at every trial that fails.
# What helps: keep the exception, raise it in the callback's `on_step_begin`, and look after `fit`.
#
# Seen with Ray 2.60.0, Python 3.11 (trials that began, how fit ended, results that are errors,
# on_trial_error called):
#   on_trial_start: 1 begun, fit raised OSError
#   on_trial_result: 1 begun, fit raised TuneError
#   on_trial_complete: 3 begun, fit returned, 3 errors, on_trial_error 3 times
# Ends with 1 where that is otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[tune]==2.60.0'
cat > "$folder/raises.py" <<'PY'
import sys

import ray
from ray import tune


def trainable(config):
    tune.report({"done": 1})


class Recorder(tune.Callback):
    def __init__(self, moment):
        self.moment, self.begun, self.errors = moment, 0, 0

    def full(self, moment):
        if moment == self.moment:
            raise OSError("no space left on device")

    def on_trial_start(self, **info):
        self.begun += 1
        self.full("on_trial_start")

    def on_trial_result(self, **info):
        self.full("on_trial_result")

    def on_trial_complete(self, **info):
        self.full("on_trial_complete")

    def on_trial_error(self, **info):
        self.errors += 1


def run(moment):
    recorder = Recorder(moment)
    tuner = tune.Tuner(
        trainable,
        param_space={"x": tune.grid_search([1, 2, 3])},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name=moment, storage_path=sys.argv[1], verbose=0, callbacks=[recorder]
        ),
    )
    try:
        results = tuner.fit()
    except Exception as error:
        return f"{recorder.begun} begun, fit raised {type(error).__name__}"
    return (
        f"{recorder.begun} begun, fit returned, {results.num_errors} errors, "
        f"on_trial_error {recorder.errors} times"
    )


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
seen = {m: run(m) for m in ("on_trial_start", "on_trial_result", "on_trial_complete")}
ray.shutdown()
for moment, what in seen.items():
    print(f"{moment}: {what}")
expected = {
    "on_trial_start": "1 begun, fit raised OSError",
    "on_trial_result": "1 begun, fit raised TuneError",
    "on_trial_complete": "3 begun, fit returned, 3 errors, on_trial_error 3 times",
}
sys.exit(seen != expected)
PY
"$folder/venv/bin/python" "$folder/raises.py" "$folder/tune" 2>"$folder/log" || { tail -20 "$folder/log"; exit 1; }
