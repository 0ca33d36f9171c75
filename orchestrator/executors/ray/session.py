"""Connect to Ray: start it here and stop it again, or connect to a running cluster."""

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
from chip_core.utils.machine import cpu_count, gpu_count
from orchestrator.executors.base import Job
from orchestrator.executors.ray.token import create_private_token
from orchestrator.jobs.job import restore_signal_handlers
from orchestrator.jobs.placement import (
    DRIVER_RESOURCE,
    ResourceRequest,
    count_fitting_workers,
    format_resources,
    max_concurrent_trials,
    worker_resources,
)
from orchestrator.utils.cluster_address import check_address, no_cluster_error

#: Resource that every head node has one unit of. Tune does not place a driver without resources.
HEAD_NODE_RESOURCE = "node:__internal_head__"

#: Environment of every process of a trial. The caller's own settings take precedence.
PROCESS_ENVIRONMENT = {
    # Train checks its worker twice as often and starts fewer other processes, so that a trial
    # ends 5 s sooner. A check takes some 10 ms in two processes.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Time for a slot to end a training that early stopping cut, before its next job.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Waiting threads yield their core.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    # No telemetry.
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

#: Prefixes of the caller's variables that are forwarded to a cluster's processes: where the hub's
#: files are, how GPUs communicate, how their memory is allocated.
FORWARDED_PREFIXES = (
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

#: Environment of Tune in this process: no tables, no log files, no handler for Ctrl-C.
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Only trainings report the metric of early stopping.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Start as many trials at once as fit. Ray's default is 1 with a searcher.
    "TUNE_MAX_PENDING_TRIALS_PG": "200",
}

#: For a local Ray, whose metrics nobody reads: collecting them takes some 1.5 % of a core, and
#: prestarted workers are never those that a trial needs.
LOCAL_RAY_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_prestart_worker_first_driver": "0",
}

#: Bytes of a local Ray's object store, which only holds small objects.
OBJECT_STORE_BYTES = 256 * 1024**2

#: Seconds to wait until the GPUs for a study's server are free.
_GPU_TIMEOUT = 120.0

#: Seconds for a local Ray's processes to end before they are killed.
_SHUTDOWN_GRACE_SECONDS = 5.0


@contextlib.contextmanager
def connect_ray(address: str | None, jobs: Sequence[Job]) -> Iterator[None]:
    """Connect to Ray, and keep its output off the terminal.

    Args:
        address: "auto" or "host:port" of a running cluster; None starts Ray on this machine and
            stops all of its processes at the end.
        jobs: the jobs to run.

    Raises:
        UserError: there is no such cluster, or a local worker could never be placed.
    """
    if address is not None:
        check_address(address)
    if ray.is_initialized():
        raise UserError("this process is already connected to Ray: call ray.shutdown() first")
    for name, value in (PROCESS_ENVIRONMENT | TUNE_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    with _silence_ray():
        if address is None:
            with _start_local_ray(jobs):
                yield
        else:
            with _connect_to_cluster(address):
                yield


def count_concurrent_jobs(
    address: str | None, jobs: Sequence[Job], max_concurrent: int | None, reserved_gpus: int = 0
) -> int:
    """Return how many jobs of this size run at once: as many as fit or are wanted.

    On this machine never more than fit; on a cluster, more wait for it to grow.

    Args:
        address: of the cluster; None: Ray was started on this machine.
        jobs: the jobs.
        max_concurrent: the maximum.
        reserved_gpus: number of GPUs that are reserved.

    Raises:
        UserError: not even one fits.
    """
    if address is None:
        max_fitting = max_concurrent_trials(
            map(job_request, jobs),
            _without_reserved_gpus([_local_resources()], reserved_gpus),
            "this machine",
        )
        return min(max_concurrent or max_fitting, max_fitting)
    if max_concurrent is None:
        hint = "; if the cluster grows automatically, set how many jobs may run at once"
        max_concurrent = max_concurrent_trials(
            map(job_request, jobs),
            _without_reserved_gpus(alive_node_resources(), reserved_gpus),
            "the cluster",
            hint,
        )
    return max(
        1, min(max_concurrent, int(ray.cluster_resources().get(DRIVER_RESOURCE, max_concurrent)))
    )


@contextlib.contextmanager
def reserve_node_gpus(gpus: int, jobs: Sequence[Job]) -> Iterator[Sequence[str]]:
    """Reserve GPUs of this machine, which must be the only node.

    Args:
        gpus: number of GPUs; with 0, only the number of nodes is checked.
        jobs: jobs of which the largest must fit on the rest.

    Raises:
        UserError: there are other nodes, or not enough GPUs.
    """
    key_path, nodes = "evaluation.generator.serves is study", alive_node_resources()
    if len(nodes) > 1:
        raise UserError(
            f"{key_path}: its server can be reached only from its own machine, but this cluster "
            f"has {len(nodes)}: write serves: trial"
        )
    if not gpus:
        yield ()
        return
    location = f"next to the study's server, which holds {gpus} GPU, this machine"
    max_concurrent_trials(
        map(job_request, jobs),
        _without_reserved_gpus(nodes, gpus),
        location,
        ", or write serves: trial",
    )
    holder = ray.remote(_GpuHolder).options(num_cpus=0, num_gpus=gpus).remote()
    try:
        yield ray.get(holder.devices.remote(), timeout=_GPU_TIMEOUT)
    except GetTimeoutError:
        raise UserError(
            f"{key_path}: {gpus} GPU for its server was not free within {_GPU_TIMEOUT:.0f} s: "
            "wait until nothing else holds them"
        ) from None
    finally:
        ray.kill(holder)


class _GpuHolder:
    """An actor that reserves GPUs for a process that the driver starts."""

    def devices(self) -> list[str]:
        """Return the GPUs in the format of CUDA_VISIBLE_DEVICES."""
        return [str(each) for each in ray.get_gpu_ids()]


def _without_reserved_gpus(
    nodes: Sequence[Mapping[str, float]], reserved_gpus: int
) -> list[dict[str, float]]:
    """Return the nodes' resources without the reserved GPUs, which are subtracted from each."""
    return [{**node, "GPU": max(0.0, node.get("GPU", 0) - reserved_gpus)} for node in nodes]


def job_request(job: Job) -> ResourceRequest:
    """Return the resource request of a job."""
    return ResourceRequest(
        num_workers=job.num_workers, per_worker=worker_resources(job.config.engine)
    )


def describe_pending_request(resources: Mapping[str, float], workers: int = 1) -> str | None:
    """Describe the resources that a trial's workers request, and what is free in the cluster.

    None: no placement group is pending, so their processes start.

    Args:
        resources: of each worker, or of the trial's slot.
        workers: how many request them.
    """
    groups = placement_group_table().values()
    if not any(group["state"] == "PENDING" for group in groups):
        return None
    total, free = ray.cluster_resources(), ray.available_resources()
    availability = ", ".join(
        f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in resources
    )
    is_placeable = any(count_fitting_workers(node, resources) for node in alive_node_resources())
    suffix = "" if is_placeable else ", and no node is that large"
    request_text = f"it asks for {format_resources(resources)} on one node"
    if workers > 1:
        request_text = f"its {workers} workers ask for {format_resources(resources)} each"
    return f"{request_text}, free in total: {availability}{suffix}"


def alive_node_resources() -> list[dict[str, float]]:
    """Return the total resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def _start_local_ray(jobs: Sequence[Job]) -> Iterator[None]:
    machine = _local_resources()
    if jobs:
        max_concurrent_trials(map(job_request, jobs), [machine], "this machine")
    create_private_token()
    # It has sockets, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="chip-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    other_processes, ray_processes = _child_processes(psutil.Process()), set[psutil.Process]()
    cleaner: subprocess.Popen[bytes] | None = None
    try:
        with (
            restore_signal_handlers(),
            _set_environment({"RAY_TMPDIR": folder, **LOCAL_RAY_ENVIRONMENT}),
        ):
            _init_local_ray(machine, max(len(jobs), int(machine["CPU"])))
        ray_processes = _child_processes(psutil.Process()) - other_processes
        cleaner = _start_cleaner(folder, ray_processes)
        yield
    finally:
        if not ray_processes:  # Ray started only in part
            ray_processes = _child_processes(psutil.Process()) - other_processes
        remaining = ray_processes | {
            child for process in ray_processes for child in _child_processes(process)
        }
        ray.shutdown()
        if cleaner is not None:
            cleaner.kill()
            cleaner.communicate()
        # Workers end when they notice that their Ray is gone, which busy ones may not.
        for process in psutil.wait_procs(remaining, timeout=_SHUTDOWN_GRACE_SECONDS)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _init_local_ray(machine: Mapping[str, float], drivers: int) -> None:
    """Start Ray on this machine.

    Raises:
        UserError: Ray does not start. It waits 30 s for its processes.
    """
    try:
        ray.init(
            address="local",
            num_cpus=int(machine["CPU"]),
            num_gpus=int(machine["GPU"]),
            resources={DRIVER_RESOURCE: drivers},
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except Exception as error:  # Ray raises Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Ray does not start on this machine ({reason}): run the command again when the "
            "machine is less busy, or with --executor inline"
        ) from None


def _child_processes(process: psutil.Process) -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(process.children(recursive=True))
    return set()


def _start_cleaner(folder: str, processes: set[psutil.Process]) -> subprocess.Popen[bytes]:
    """Start a process that cleans up if this one is killed.

    Without it most of Ray would end, but two agents only after 90 s, and its files would stay.
    """
    script = 'read _; sleep 1; folder=$1; shift; kill -9 "$@"; rm -rf "$folder"'
    return subprocess.Popen(
        ["sh", "-c", script, "sh", folder, *(str(process.pid) for process in processes)],
        stdin=subprocess.PIPE,  # it is closed when this process ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def forwarded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of this process's environment that is forwarded to a cluster's processes.

    Tokens are left out, since Ray shows these variables in its dashboard.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in PROCESS_ENVIRONMENT
        or (name.startswith(FORWARDED_PREFIXES) and not name.endswith(("TOKEN", "TOKEN_PATH")))
    }


@contextlib.contextmanager
def _connect_to_cluster(address: str) -> Iterator[None]:
    try:
        with restore_signal_handlers():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": forwarded_environment(os.environ)},
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise no_cluster_error(address, error) from None
    try:
        yield
    finally:
        ray.shutdown()


def _local_resources() -> dict[str, float]:
    return {"CPU": float(cpu_count()), "GPU": float(gpu_count())}


@contextlib.contextmanager
def _silence_ray() -> Iterator[None]:
    """Silence Ray's loggers and the node errors that it prints to sys.stdout.

    Code that prints meanwhile must hold the stream itself.
    """
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _set_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables temporarily. Ray's processes inherit them when they start."""
    previous_values = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous_values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
