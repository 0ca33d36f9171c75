"""A connection to Ray: started here and stopped again, or to a cluster that runs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import psutil  # type: ignore[import-untyped]
import ray
from ray.exceptions import GetTimeoutError
from ray.util import placement_group_table

from chip_core.utils.errors import UserError
from chip_core.utils.machine import cores, gpus
from orchestrator.executors.base import Job
from orchestrator.executors.ray.token import keep_token_private
from orchestrator.jobs.placement import (
    DRIVER,
    ResourceRequest,
    amounts,
    fitting,
    resources_of,
    trials_at_once,
)
from orchestrator.jobs.stopping import signals_kept
from orchestrator.utils.cluster_address import check_address, no_cluster

#: What every cluster's head node has one unit of; Tune does not place a driver that takes nothing.
HEAD_NODE = "node:__internal_head__"

#: For every process of a trial. The caller's own settings win.
ENVIRONMENT = {
    # Train looks at its worker twice as often, and starts fewer helpers: a trial ends 5 s sooner.
    # A look costs two processes some 10 ms.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A slot is given time to end a training that early stopping cut, before its next job.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Threads that wait give their core away.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    # Nothing is sent home.
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

#: What the caller's own settings of these begin with goes to a cluster's processes too: where the
#: hub's files lie, how GPUs talk to each other, how their memory is kept.
FORWARDED = (
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "NCCL_",
    "TORCH_NCCL_",
    "GLOO_",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
)

#: For Tune in this process: no tables, no log files of its own, no grip on Ctrl-C.
TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The metric of early stopping is reported by trainings alone.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # How many begin at the same time: as many as fit. Ray's own is 1 where a list is added to.
    "TUNE_MAX_PENDING_TRIALS_PG": "200",
}

#: For a local Ray, whose state nobody looks at: what its processes keep and send of it takes some
#: 1.5 % of a core, and workers that stand ready are never those that a trial needs.
UNOBSERVED = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_prestart_worker_first_driver": "0",
}

#: Bytes of a local Ray's object store: what passes through it is small.
OBJECT_STORE = 256 * 1024**2

#: Seconds within which GPUs for a study's server are free.
_GPUS_WITHIN = 120.0

#: Seconds that a local Ray's processes have to end, before they are killed.
_GRACE = 5.0


@contextlib.contextmanager
def session(address: str | None, jobs: Sequence[Job]) -> Iterator[None]:
    """Be connected to Ray, and keep it off the terminal.

    Args:
        address: "auto" or "host:port" of a running cluster; None starts Ray on this machine, and
            no process of it is left afterwards.
        jobs: what is to run.

    Raises:
        UserError: there is no such cluster, or a local worker could never be placed.
    """
    if address is not None:
        check_address(address)
    if ray.is_initialized():
        raise UserError("this process is connected to Ray already: call ray.shutdown() first")
    for name, value in (ENVIRONMENT | TUNE).items():
        os.environ.setdefault(name, value)
    with _quiet():
        if address is None:
            with _started(jobs):
                yield
        else:
            with _connected(address):
                yield


def at_once(address: str | None, jobs: Sequence[Job], wanted: int | None, held: int = 0) -> int:
    """Return how many jobs as large as these run at once: as many as fit, or as are wanted.

    On this machine, never more than fit. On a cluster, more wait for it to grow.

    Args:
        address: of the cluster; None: Ray was started on this machine.
        jobs: the jobs.
        wanted: how many at most.
        held: GPUs that something else holds.

    Raises:
        UserError: not even one fits.
    """
    if address is None:
        fit = trials_at_once(map(request_of, jobs), _beside([_machine()], held), "this machine")
        return min(wanted or fit, fit)
    if wanted is None:
        hint = "; if the cluster grows by itself, say how many jobs may run at once"
        wanted = trials_at_once(
            map(request_of, jobs), _beside(living_nodes(), held), "the cluster", hint
        )
    return max(1, min(wanted, int(ray.cluster_resources().get(DRIVER, wanted))))


@contextlib.contextmanager
def held_gpus(gpus: int, jobs: Sequence[Job]) -> Iterator[Sequence[str]]:
    """Hold GPUs of this machine, which has to be the only one.

    Args:
        gpus: how many; 0: only the machine is looked at.
        jobs: the largest of them has to fit beside.

    Raises:
        UserError: there are other machines, or not enough GPUs.
    """
    where, nodes = "evaluation.generator.serves is study", living_nodes()
    if len(nodes) > 1:
        raise UserError(
            f"{where}: its server is reached on its own machine alone, and this cluster has "
            f"{len(nodes)}: write serves: trial"
        )
    if not gpus:
        yield ()
        return
    beside = f"beside the study's server, which holds {gpus} GPU, this machine"
    trials_at_once(map(request_of, jobs), _beside(nodes, gpus), beside, ", or write serves: trial")
    holder = ray.remote(_Holder).options(num_cpus=0, num_gpus=gpus).remote()
    try:
        yield ray.get(holder.devices.remote(), timeout=_GPUS_WITHIN)
    except GetTimeoutError:
        raise UserError(
            f"{where}: {gpus} GPU for its server did not come free within {_GPUS_WITHIN:.0f} s: "
            "wait until nothing else holds them"
        ) from None
    finally:
        ray.kill(holder)


class _Holder:
    """An actor that holds GPUs, which a process of this one's computes on."""

    def devices(self) -> list[str]:
        """Return which ones, as CUDA_VISIBLE_DEVICES names them."""
        return [str(each) for each in ray.get_gpu_ids()]


def _beside(nodes: Sequence[Mapping[str, float]], held: int) -> list[dict[str, float]]:
    """Return what nodes have beside GPUs that are held; those of one node."""
    return [{**node, "GPU": max(0.0, node.get("GPU", 0) - held)} for node in nodes]


def request_of(job: Job) -> ResourceRequest:
    """Return what a job asks for."""
    return ResourceRequest(workers=job.workers, each=resources_of(job.config.engine))


def place_wanted(resources: Mapping[str, float]) -> str | None:
    """Return what a slot asks for, and what of it is free in the cluster, for people.

    None: it has its place, and its process starts.
    """
    groups = placement_group_table().values()
    if not any(group["state"] == "PENDING" for group in groups):
        return None
    there, free = ray.cluster_resources(), ray.available_resources()
    of = ", ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}" for name in resources)
    large = any(fitting(node, resources) for node in living_nodes())
    none = "" if large else ", and no node is that large"
    return f"it asks for {amounts(resources)} on one node, free in all are {of}{none}"


def living_nodes() -> list[dict[str, float]]:
    """Return what each node of the cluster has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def _started(jobs: Sequence[Job]) -> Iterator[None]:
    machine = _machine()
    if jobs:
        trials_at_once(map(request_of, jobs), [machine], "this machine")
    keep_token_private()
    # Sockets lie in it, and their paths must be short.
    folder = tempfile.mkdtemp(prefix="chip-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    others, started = _children(psutil.Process()), set[psutil.Process]()
    guard: subprocess.Popen[bytes] | None = None
    try:
        with signals_kept(), _environment({"RAY_TMPDIR": folder, **UNOBSERVED}):
            _start(machine, max(len(jobs), int(machine["CPU"])))
        started = _children(psutil.Process()) - others
        guard = _guard(folder, started)
        yield
    finally:
        started = started or _children(psutil.Process()) - others  # where Ray did not start whole
        left = started | {child for process in started for child in _children(process)}
        ray.shutdown()
        if guard is not None:
            guard.kill()
            guard.communicate()
        # Workers end when they see that their Ray is gone, which one that is busy may not.
        for process in psutil.wait_procs(left, timeout=_GRACE)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(machine: Mapping[str, float], drivers: int) -> None:
    """Start Ray on this machine.

    Raises:
        UserError: it does not start; Ray waits 30 s for its processes.
    """
    try:
        ray.init(
            address="local",
            num_cpus=int(machine["CPU"]),
            num_gpus=int(machine["GPU"]),
            resources={DRIVER: drivers},
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except Exception as error:  # Ray's own class for it is Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Ray does not start on this machine ({reason}): run the command again when the "
            "machine is less busy, or with --executor inline"
        ) from None


def _children(process: psutil.Process) -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(process.children(recursive=True))
    return set()


def _guard(folder: str, processes: set[psutil.Process]) -> subprocess.Popen[bytes]:
    """Start a process that cleans up should this one be killed.

    Most of Ray then ends by itself, but for two agents, which take 90 s, and its files.
    """
    script = 'read _; sleep 1; folder=$1; shift; kill -9 "$@"; rm -rf "$folder"'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", folder, *(str(process.pid) for process in processes)],
        stdin=subprocess.PIPE,  # it ends when this process does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a cluster's processes get of this process's environment.

    No token: Ray shows these to whoever may look at its dashboard.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in ENVIRONMENT
        or (name.startswith(FORWARDED) and not name.endswith(("TOKEN", "TOKEN_PATH")))
    }


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    try:
        with signals_kept():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": forwarded(os.environ)},
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise no_cluster(address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


def _machine() -> dict[str, float]:
    return {"CPU": float(cores()), "GPU": float(gpus())}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Ray's loggers, and what it prints to sys.stdout of its nodes' errors.

    Whoever has something to print in the meantime holds the stream itself.
    """
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have environment variables for a while: Ray's processes inherit them as they start."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
