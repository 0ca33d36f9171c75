#!/usr/bin/env bash
# Ray Tune: an exception in a Callback's `on_trial_start` or `on_trial_result` ends the run: `Tuner.fit`
# raises. One in `on_trial_complete` does not: Tune logs it, treats the trial, which had
# finished, as failed, calls `on_trial_error` of the same callback for it, starts the next trials, and
# `fit` returns. A callback that records results in `on_trial_complete` (a file, a database) and relies on the
# exception if they cannot be written loses them while the run continues to its end.
# `FailureConfig(fail_fast="raise")` ends the run there too, but at every trial that fails.
# Workaround: keep the exception, raise it in the callback's `on_step_begin`, and check after `fit`.
#
# Seen with Ray 2.60.0, Python 3.11 (trials that began, how fit ended, results that are errors,
# on_trial_error called):
#   on_trial_start: 1 begun, fit raised OSError
#   on_trial_result: 1 begun, fit raised TuneError
#   on_trial_complete: 3 begun, fit returned, 3 errors, on_trial_error 3 times
# Exits with 1 once this has changed.
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
