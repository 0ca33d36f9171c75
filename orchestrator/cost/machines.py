"""Describe this machine, and how many trials it runs at once."""

from __future__ import annotations

from collections.abc import Sequence

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.generators.sharing import is_servable, is_shared
from chip_core.utils.machine import cpu_count, cpu_name, device_name, gpu_count
from orchestrator.cost.workload import TrialWork


def machine_of(config: TrialConfig) -> str | None:
    """Return the device that a trial would run on here; None if there is none."""
    engine = config.engine
    if engine.device == "cuda" or (engine.device == "auto" and engine.gpus_per_worker > 0):
        return device_name("cuda") if gpu_count() else None
    return cpu_name()  # Ray hides the GPUs from a worker that asks for none


def machines_of(work: Sequence[TrialWork]) -> set[str] | None:
    """Return the devices that trials would run on here; None if some need another machine."""
    found = {machine_of(each.config) for each in work}
    return None if None in found else {name for name in found if name is not None}


def server_gpus(work: Sequence[TrialWork]) -> int:
    """Return how many GPUs the study's own server holds; 0 if there is none or it is not used."""
    held = any(each.config.engine.gpus_per_worker for each in work)
    asks = [
        each.config
        for each in work
        if not each.answered and (each.trial.untrained or is_servable(each.config))
    ]
    if not (held and asks and is_shared(asks[0])):
        return 0
    return asks[0].evaluation.generator.gpus


def places_for(work: Sequence[TrialWork], held: int = 0) -> int | None:
    """Return how many of the largest trial this machine can run at once; None if none.

    Args:
        work: the trials.
        held: GPUs that are held otherwise.
    """
    fewest: int | None = None
    for each in work:
        engine, slots = (
            each.config.engine,
            cpu_count() // (each.config.engine.cpus_per_worker * each.processes),
        )
        if engine.gpus_per_worker:
            free = max(0, gpu_count() - held)
            slots = min(slots, int(free / (engine.gpus_per_worker * each.processes)))
        fewest = slots if fewest is None else min(fewest, slots)
    return fewest or None


def places_on(work: Sequence[TrialWork], count: int) -> int | None:
    """Return how many of the largest trial `count` GPUs can run at once; None if none."""
    needed = [each.config.engine.gpus_per_worker * each.processes for each in work]
    most = max(needed, default=0.0)
    return int(count / most) or None if most else 1
