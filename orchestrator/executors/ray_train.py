"""Ray Train's trainers with what one job needs, and no more processes than that.

Train starts for each run a controller and an actor by which its workers wait for each other, of
some 2 CPU s each, which are mostly imports. A trial of a small model is worth 20.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group

#: Seconds that one of several workers may wait for another: the first alone writes checkpoints.
PATIENCE = 7200

#: What Train would start for a trial, at 1.5 s of a CPU each, and a trial does not need: Ray Data
#: is not used, and the executor itself frees the place of a trial that ended badly.
_NOT_NEEDED = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def trainer_of(work: Callable[[dict[str, Any]], Any], workers: int, **settings: Any) -> Any:
    """Return Train's trainer for so many workers, with its controller in this process.

    Several are joined by torch.distributed: a `TorchTrainer`. One has nobody to talk to, and is run
    by what that is made of: so this process does not import torch for nothing.

    Args:
        work: what each worker runs.
        workers: how many.
        settings: Train's own.
    """
    base: Any
    if workers > 1:
        from ray.train.torch import TorchConfig, TorchTrainer

        base, settings["torch_config"] = TorchTrainer, TorchConfig(timeout_s=PATIENCE)
    else:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        base = DataParallelTrainer

    class Trainer(base):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ not in _NOT_NEEDED]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            settings["scaling_policy"] = _AsManyAsSaid(self.scaling_config)
            with _nobody_to_wait_for() if workers == 1 else nullcontext():
                controller = TrainController(**settings)
                asyncio.run(controller.run())
            return controller.get_result()

    return Trainer(work, **settings)


class _AsManyAsSaid(FixedScalingPolicy):  # type: ignore[misc]
    """Train's own, which tells nobody: a cluster grows by the place that its workers wait for."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start no actor that adds up what all runs of Train want of the cluster."""

    def _maybe_send_resource_request(self) -> None:
        pass


class _Nobody:
    """In place of the actor by which workers wait for each other in `train.report`.

    One worker has nobody to wait for, and reports nothing by Train.
    """

    @classmethod
    def options(cls, **settings: Any) -> type[_Nobody]:
        return cls

    @classmethod
    def remote(cls, **settings: Any) -> _Nobody:
        return cls()


@contextmanager
def _nobody_to_wait_for() -> Iterator[None]:
    """Have Train's worker group start no such actor, nor end one: this process has one group."""
    start, end = worker_group.SynchronizationActor, state._shutdown_sync_actor
    worker_group.SynchronizationActor, state._shutdown_sync_actor = _Nobody, lambda actor: None
    try:
        yield
    finally:
        worker_group.SynchronizationActor, state._shutdown_sync_actor = start, end
