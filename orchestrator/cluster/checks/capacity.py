"""Check that a study's trials fit on a cluster's nodes.

A trial's workers request the resources of the recipe's `engine`. The driver of several workers
requests a unit of `chip_driver` and no CPU. A driver that held the resources that its workers wait
for would wait forever without an error, so drivers are placed on the head only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chip_core.config.trial import EngineConfig
from chip_core.config.validation import set_key
from orchestrator.cluster.checks.node_types import NodeType, list_node_types
from orchestrator.cluster.config import LOCAL_PROVIDER, SETTINGS_KEY, ClusterFile, Problem
from orchestrator.jobs.placement import (
    DRIVER_RESOURCE,
    ResourceRequest,
    count_fitting_workers,
    count_slots,
    format_resources,
    worker_resources,
)
from orchestrator.study.model import Study


@dataclass(frozen=True, kw_only=True)
class ResourceNeed(ResourceRequest):
    """The resources of each trial of a study."""

    trials: int


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The capacity of a cluster for a study."""

    slots: int  # workers that fit on the whole cluster at its largest size
    at_once: int  # trials


def study_resource_need(study: Study) -> ResourceNeed:
    """Return the resources of a study's largest trial."""
    engines = []
    for levels in [(), *((level,) for factor in study.factors for level in factor.levels)]:
        config = {"engine": dict(study.base.get("engine", {}))}
        for level in levels:
            for key, value in level.overrides.items():
                if key.startswith("engine."):
                    set_key(config, key, value)
        engines.append(EngineConfig.model_validate(config["engine"]))
    largest = EngineConfig(
        gpus_per_worker=max(engine.gpus_per_worker for engine in engines),
        cpus_per_worker=max(engine.cpus_per_worker for engine in engines),
    )
    return ResourceNeed(
        num_workers=max(engine.workers_per_trial for engine in engines),
        per_worker=worker_resources(largest),
        trials=(len(study.cells) + study.placebo) * len(study.seeds),
    )


def compute_capacity(kinds: Sequence[NodeType], need: ResourceNeed) -> Capacity:
    """Return how many trials run at once on a cluster at its largest size.

    A trial is placed on one machine if one is large enough, else on several.
    """
    nodes = [kind.resources for kind in kinds for _ in range(kind.max_count)]
    drivers = sum(node.get(DRIVER_RESOURCE, 0) for node in nodes)
    return Capacity(
        slots=sum(count_fitting_workers(node, need.per_worker) for node in nodes),
        at_once=min(count_slots(need, nodes), need.trials, int(drivers)),
    )


def driver_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield node types that would place drivers wrongly."""
    for kind in list_node_types(cluster):
        drivers = kind.resources.get(DRIVER_RESOURCE, 0)
        key = f"{kind.key}.resources.{DRIVER_RESOURCE}"
        if kind.head and drivers < 1:
            yield Problem(
                key="head_start_ray_commands" if cluster.provider == LOCAL_PROVIDER else key,
                message=f"the head offers no {DRIVER_RESOURCE}: drivers of trials would take the "
                "resources that their workers wait for. Offer 64: "
                f"--resources='{{\"{DRIVER_RESOURCE}\": 64}}'",
            )
        if not kind.head and drivers:
            yield Problem(
                key="worker_start_ray_commands" if cluster.provider == LOCAL_PROVIDER else key,
                message=f"a worker offers {DRIVER_RESOURCE}: a trial's driver would die with that "
                "machine: offer it only on the head",
            )


def capacity_problems(cluster: ClusterFile, need: ResourceNeed) -> Iterator[Problem]:
    """Yield reasons why a study's trials would wait forever."""
    kinds = list_node_types(cluster)
    workers = [kind for kind in kinds if not kind.head]
    undeclared = [kind for kind in workers if not kind.resources.get("CPU")]
    for kind in undeclared:
        key = (
            f"{SETTINGS_KEY}.worker"
            if cluster.provider == LOCAL_PROVIDER
            else f"{kind.key}.resources"
        )
        yield Problem(key=key, message="does not list a worker's resources: write {CPU: …, GPU: …}")
    if undeclared:
        return
    available = compute_capacity(kinds, need)
    if available.slots >= need.num_workers:
        return
    machines = "; ".join(
        f"{kind.max_count} × {_format_resources(kind.resources)}" for kind in workers
    )
    yield Problem(
        key=workers[0].key if workers else "available_node_types",
        message=f"a trial has {need.num_workers} worker(s) of {format_resources(need.per_worker)} "
        f"each, but there is room for {available.slots} ({machines or 'no workers'}): use "
        "larger or more machines, or lower engine.workers_per_trial, engine.gpus_per_worker "
        "or engine.cpus_per_worker",
    )


def _format_resources(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
