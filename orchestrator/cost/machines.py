"""Describe this machine, and how many trials it runs at once."""

from __future__ import annotations

from collections.abc import Sequence

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.generators.choice import is_servable
from chip_core.utils.machine import cpu_count, cpu_name, device_name, gpu_count
from orchestrator.cost.workload import TrialWork


def trial_machine(config: TrialConfig) -> str | None:
    """Return the device that a trial would run on here; None if there is none."""
    if config.engine.uses_gpu:
        return device_name("cuda") if gpu_count() else None
    return cpu_name()  # Ray hides the GPUs from a worker that asks for none


def trial_machines(work: Sequence[TrialWork]) -> set[str] | None:
    """Return the devices that trials would run on here; None if some need another machine."""
    machines = {trial_machine(trial_work.config) for trial_work in work}
    return None if None in machines else {name for name in machines if name is not None}


def server_gpus(work: Sequence[TrialWork]) -> int:
    """Return how many GPUs the study's own server holds; 0 if there is none or it is not used."""
    uses_gpus = any(trial_work.config.engine.gpus_per_worker for trial_work in work)
    configs = [
        trial_work.config
        for trial_work in work
        if not trial_work.answered
        and (trial_work.trial.untrained or is_servable(trial_work.config))
    ]
    if not (uses_gpus and configs and configs[0].evaluation.has_study_server):
        return 0
    return configs[0].evaluation.generator.gpus


def slots_on_machine(work: Sequence[TrialWork], held_gpus: int = 0) -> int | None:
    """Return how many of the largest trial this machine can run at once; None if none.

    Args:
        work: the trials.
        held_gpus: GPUs that are held otherwise.
    """
    slots = []
    for trial_work in work:
        engine = trial_work.config.engine
        slots.append(cpu_count() // (engine.cpus_per_worker * trial_work.processes))
        if engine.gpus_per_worker:
            free = max(0, gpu_count() - held_gpus)
            slots.append(int(free / (engine.gpus_per_worker * trial_work.processes)))
    return min(slots, default=0) or None


def slots_on_gpus(work: Sequence[TrialWork], count: int) -> int | None:
    """Return how many of the largest trial `count` GPUs can run at once; None if none."""
    needed = [
        trial_work.config.engine.gpus_per_worker * trial_work.processes for trial_work in work
    ]
    max_needed = max(needed, default=0.0)
    return int(count / max_needed) or None if max_needed else 1
