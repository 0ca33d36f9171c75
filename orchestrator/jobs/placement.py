"""Place a trial's workers on a cluster's nodes by their resource requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chip_core.config.trial import EngineConfig
from chip_core.utils.errors import UserError

#: Custom resource of the jobs' drivers. They take no CPU, so that one is always left for workers.
DRIVER = "chip_driver"


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """The resources that a trial requests."""

    workers: int
    each: Mapping[str, float]  # resources per worker, with Ray's names


def resources_of(engine: EngineConfig) -> dict[str, float]:
    """Return the resources of each of a trial's workers, with Ray's names."""
    gpus = {"GPU": engine.gpus_per_worker} if engine.gpus_per_worker else {}
    return {"CPU": float(engine.cpus_per_worker)} | gpus


def fitting(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Return how many workers fit a node, with a tolerance: 0.6 GPU holds three of 0.2."""
    return int(min(node.get(name, 0) / amount for name, amount in each.items()) + 1e-6)


def slots(request: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trials with the same request fit the nodes at once.

    If a node can hold a whole trial, trials are not spread over nodes (`placement_of`).
    """
    there = [fitting(node, request.each) for node in nodes]
    return sum(count // request.workers for count in there) or sum(there) // request.workers


def trials_at_once(
    requests: Iterable[ResourceRequest],
    nodes: Sequence[Mapping[str, float]],
    where: str,
    hint: str = "",
) -> int:
    """Return how many trials of the largest request fit at once, with all their workers.

    Raises:
        UserError: not even one fits.
    """
    counts = {slots(request, nodes): request for request in requests}
    if 0 not in counts:
        return min(counts)
    request, keys = counts[0], "engine.cpus_per_worker or engine.gpus_per_worker"
    who = "a worker asks for"
    if request.workers > 1:
        who = f"a trial has {request.workers} workers, and each asks for"
        keys = f"engine.workers_per_trial, {keys}"
    there = "; ".join(amounts({name: node.get(name, 0) for name in request.each}) for node in nodes)
    raise UserError(
        f"{who} {amounts(request.each)}, and {where} has {there or 'no node'}: lower {keys}{hint}"
    )


def placement_of(request: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> str:
    """Return Ray's placement strategy for a trial's workers (`ScalingConfig.placement_strategy`).

    STRICT_PACK, one node, if a node is large enough, even if they must wait for it, since they
    exchange gradients at every update; else PACK, as few nodes as possible.
    """
    whole = any(fitting(node, request.each) >= request.workers for node in nodes)
    return "STRICT_PACK" if whole else "PACK"


def amounts(resources: Mapping[str, float]) -> str:
    """Format resources."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
