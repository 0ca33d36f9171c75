"""Place a trial's workers on a cluster's nodes by their resource requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chip_core.config.trial import EngineConfig
from chip_core.utils.errors import UserError

#: Custom resource of the jobs' drivers. They take no CPU, so that one is always left for workers.
DRIVER_RESOURCE = "chip_driver"


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """The resources that a trial requests."""

    num_workers: int
    per_worker: Mapping[str, float]  # resources per worker, with Ray's names


def worker_resources(engine: EngineConfig) -> dict[str, float]:
    """Return the resources of each of a trial's workers, with Ray's names."""
    gpus = {"GPU": engine.gpus_per_worker} if engine.gpus_per_worker else {}
    return {"CPU": float(engine.cpus_per_worker)} | gpus


def count_fitting_workers(node: Mapping[str, float], per_worker: Mapping[str, float]) -> int:
    """Return how many workers fit a node, with a tolerance: 0.6 GPU holds three of 0.2."""
    return int(min(node.get(name, 0) / amount for name, amount in per_worker.items()) + 1e-6)


def count_slots(request: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trials with the same request fit the nodes at once.

    If a node can hold a whole trial, trials are not spread over nodes (`placement_strategy`).
    """
    worker_counts = [count_fitting_workers(node, request.per_worker) for node in nodes]
    return (
        sum(count // request.num_workers for count in worker_counts)
        or sum(worker_counts) // request.num_workers
    )


def max_concurrent_trials(
    requests: Iterable[ResourceRequest],
    nodes: Sequence[Mapping[str, float]],
    location: str,
    hint: str = "",
) -> int:
    """Return how many trials of the largest request fit at once, with all their workers.

    Raises:
        UserError: not even one fits.
    """
    counts = {count_slots(request, nodes): request for request in requests}
    if 0 not in counts:
        return min(counts)
    request, keys = counts[0], "engine.cpus_per_worker or engine.gpus_per_worker"
    subject = "a worker asks for"
    if request.num_workers > 1:
        subject = f"a trial has {request.num_workers} workers, and each asks for"
        keys = f"engine.workers_per_trial, {keys}"
    available = "; ".join(
        format_resources({name: node.get(name, 0) for name in request.per_worker}) for node in nodes
    )
    raise UserError(
        f"{subject} {format_resources(request.per_worker)}, and {location} has "
        f"{available or 'no node'}: lower {keys}{hint}"
    )


def placement_strategy(request: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> str:
    """Return Ray's placement strategy for a trial's workers (`ScalingConfig.placement_strategy`).

    STRICT_PACK, one node, if a node is large enough, even if they must wait for it, since they
    exchange gradients at every update; else PACK, as few nodes as possible.
    """
    fits_one_node = any(
        count_fitting_workers(node, request.per_worker) >= request.num_workers for node in nodes
    )
    return "STRICT_PACK" if fits_one_node else "PACK"


def format_resources(resources: Mapping[str, float]) -> str:
    """Format resources."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
