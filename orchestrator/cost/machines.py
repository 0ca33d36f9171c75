"""Describe this machine, and how many trials it runs at once."""

from __future__ import annotations

from collections.abc import Sequence

from chip_core.config.trial import TrialConfig
from chip_core.utils.machine import cores, cpu_name, device_name, gpus
from orchestrator.cost.workload import TrialWork


def machine_of(config: TrialConfig) -> str | None:
    """Return the device that a trial would run on here; None if there is none."""
    engine = config.engine
    if engine.device == "cuda" or (engine.device == "auto" and engine.gpus_per_worker > 0):
        return device_name("cuda") if gpus() else None
    return cpu_name()  # Ray hides the GPUs from a worker that asks for none


def machines_of(work: Sequence[TrialWork]) -> set[str] | None:
    """Return the devices that trials would run on here; None if some need another machine."""
    found = {machine_of(each.config) for each in work}
    return None if None in found else {name for name in found if name is not None}


def places_for(work: Sequence[TrialWork]) -> int | None:
    """Return how many of the largest trial this machine can run at once; None if none."""
    fewest: int | None = None
    for each in work:
        engine, slots = (
            each.config.engine,
            cores() // (each.config.engine.cpus_per_worker * each.processes),
        )
        if engine.gpus_per_worker:
            slots = min(slots, int(gpus() / (engine.gpus_per_worker * each.processes)))
        fewest = slots if fewest is None else min(fewest, slots)
    return fewest or None


def places_on(work: Sequence[TrialWork], count: int) -> int | None:
    """Return how many of the largest trial `count` GPUs can run at once; None if none."""
    needed = [each.config.engine.gpus_per_worker * each.processes for each in work]
    most = max(needed, default=0.0)
    return int(count / most) or None if most else 1
