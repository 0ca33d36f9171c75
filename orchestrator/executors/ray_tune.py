"""Jobs on Ray: Tune schedules them, each is one Train run of one worker."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from chip_core.errors import UserError
from chip_core.trial import Progress, read_result
from orchestrator.executors.base import Event, Failed, Finished, Job, Progressed, Started
from orchestrator.executors.ray_worker import PROGRESS, REASON, Parcel, drive

#: A custom resource for the jobs' drivers: they take no CPU, so that workers find one.
DRIVER = "chip_driver"

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

class RayTuneExecutor:
    def __init__(self, *, workdir, address=None, max_concurrent=None, begin_within=600.0, entry="orchestrator.executors.base:execute"):
        self.workdir=workdir; self.max_concurrent=max_concurrent; self.entry=entry

    def run(self, jobs, on_event):
        for k, v in {"RAY_TRAIN_V2_ENABLED":"1","TUNE_DISABLE_AUTO_CALLBACK_LOGGERS":"1","TUNE_PRINT_ALL_TRIAL_ERRORS":"0","TUNE_DISABLE_SIGINT_HANDLER":"1","RAY_USAGE_STATS_ENABLED":"0", **ENVIRONMENT}.items():
            os.environ.setdefault(k, v)
        t=time.time()
        ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=bool(os.environ.get("LOGS")), logging_level=logging.CRITICAL, resources={DRIVER: 1000})
        print("init", time.time()-t)
        if os.environ.get("LOGS"): print(os.popen("ps -eo pid,ppid,rss,args --sort=start_time | cut -c1-200").read())
        storage=str((self.workdir/"ray").absolute())
        parcels={j.id: Parcel(id=j.id, job=pickle.dumps(j), entry=self.entry, resources={"CPU": j.config.engine.cpus_per_worker}, storage=storage, environment=ENVIRONMENT) for j in jobs}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(drive, parcels=parcels), tune.PlacementGroupFactory([{"CPU":0, DRIVER:1}])),
            param_space={"job": tune.grid_search(list(parcels))},
            tune_config=tune.TuneConfig(reuse_actors=bool(os.environ.get("REUSE")),max_concurrent_trials=self.max_concurrent, trial_name_creator=lambda t: t.config["job"], trial_dirname_creator=lambda t: t.config["job"]),
            run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0, callbacks=[_Listener({j.id:j for j in jobs}, on_event)], failure_config=tune.FailureConfig(max_failures=0)),
        )
        tuner.fit()
        t=time.time()
        ray.shutdown()
        print("down", time.time()-t)

class _Listener(tune.Callback):
    def __init__(self, jobs, on_event): self.jobs=jobs; self.on_event=on_event
    def on_trial_start(self, iteration, trials, trial, **info): self.on_event(Started(job=self.jobs[trial.config["job"]]))
    def on_trial_result(self, iteration, trials, trial, result, **info):
        if PROGRESS in result: self.on_event(Progressed(job=self.jobs[trial.config["job"]], progress=Progress(**result[PROGRESS])))
        else: print(result)
    def on_trial_complete(self, iteration, trials, trial, **info):
        j=self.jobs[trial.config["job"]]
        self.on_event(Finished(job=j, result=read_result(j.folder)))
    def on_trial_error(self, iteration, trials, trial, **info):
        j=self.jobs[trial.config["job"]]
        self.on_event(Failed(job=j, reason=str(trial.last_result)))
