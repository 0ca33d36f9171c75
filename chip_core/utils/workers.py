"""The processes that share one trial: this process's rank, and communication between them.

They are joined by torch.distributed: Ray Train does this for its workers, `join_workers` for
torchrun's. A single process needs neither.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from chip_core.utils.errors import TrialError, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: How long one worker waits for another: only rank 0 writes checkpoints.
BARRIER_TIMEOUT = timedelta(hours=2)

#: Seconds between two synchronizations while the others wait for work of rank 0 that may take
#: longer than that.
HEARTBEAT_INTERVAL = 60.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of a trial, seen from one of them."""

    rank: int = 0  # of this process, counted from 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """Whether the trial has one process."""
        return self.size == 1

    def ranks_by_machine(self) -> list[list[int]]:
        """Return the ranks on each machine, in the order of their first ones, on every process."""
        ranks: dict[str, list[int]] = {}
        for rank, machine in enumerate(self.all_gather(_machine_id())):
            ranks.setdefault(machine, []).append(rank)
        return list(ranks.values())

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if not self.is_single:
            import torch.distributed as dist

            dist.barrier()

    def all_reduce(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Return the sum of each value over all processes, which all pass the same names.

        Args:
            values: this process's summands.
            device: the model's device, used for the communication.
        """
        if self.is_single:
            return dict(values)
        import torch
        import torch.distributed as dist

        totals = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        return dict(zip(values, totals.tolist(), strict=True))

    def gather_results(self, make: Callable[[], T]) -> list[T]:
        """Return each process's result of `make`, by rank, on every process.

        Raises:
            Exception: what this process's `make` raised; if another's did, a TrialError, of the
                same kind if that was one.
        """
        failure: Exception | None = None
        result: T | None = None
        try:
            result = make()
        except Exception as error:  # the other workers, which wait, are informed first
            failure = error
        reports = self.all_gather((_failure_reason(failure), result))
        if failure is not None:
            raise failure
        for rank, (reason, _) in enumerate(reports):
            if reason is not None:
                kind, text = reason
                raise kind(f"worker {rank}: {text}")
        return [value for _, value in reports]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Return rank 0's result of `make` on every process; the others do not call it.

        Raises:
            Exception: as `gather_results`.
        """
        return self.gather_results(lambda: make() if self.is_main else None)[0]  # type: ignore[return-value]

    def wait_for_rank0(self, make: Callable[[], T]) -> T:
        """Return rank 0's result of `make` on every process, however long it takes (such as with
        judges).

        Meanwhile all processes synchronize now and then, so that none waits longer than
        `BARRIER_TIMEOUT`.

        Args:
            make: a function that does not communicate with other processes.

        Raises:
            Exception: as `gather_results`.
        """
        if self.is_single:
            return make()
        if not self.is_main:
            while not self.all_gather(None)[0]:
                pass  # the synchronization is the wait
            return self.broadcast_from_rank0(make)
        finished = threading.Event()
        heartbeat = threading.Thread(
            target=self._send_heartbeats, args=(finished, _current_gpu()), daemon=True
        )

        def make_with_heartbeat() -> T:
            heartbeat.start()
            try:
                return make()
            finally:
                finished.set()
                heartbeat.join()

        return self.broadcast_from_rank0(make_with_heartbeat)

    def _send_heartbeats(self, finished: threading.Event, gpu: int | None) -> None:
        """Tell the others now and then whether rank 0 is done, until it is."""
        import torch

        if gpu is not None:
            torch.cuda.set_device(gpu)  # each thread has its own device
        done = False
        with suppress(Exception):  # a process that is lost now is reported afterwards
            while not done:
                done = finished.wait(HEARTBEAT_INTERVAL)
                self.all_gather(done)

    def all_gather(self, value: Any) -> list[Any]:
        """Return each process's value, by rank; plain data."""
        if self.is_single:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def _machine_id() -> str:
    """Return an identifier of this process's machine.

    Ray Train and torchrun number the machines. Two containers may have the same host name.
    """
    for name in ("NODE_RANK", "GROUP_RANK"):
        if name in os.environ:
            return f"{name} {os.environ[name]}"
    return socket.gethostname()


def _current_gpu() -> int | None:
    """Return the GPU that this thread computes on, if any."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None  # asking for the device would initialize one
    return torch.cuda.current_device()


def _failure_reason(failure: Exception | None) -> tuple[type[TrialError], str] | None:
    if failure is None:
        return None
    text = (str(failure).splitlines() or [""])[0]
    if isinstance(failure, TrialError):
        return type(failure), text
    return TrialError, f"{type(failure).__name__}: {text}"


def current_workers() -> Workers:
    """Return the processes that this one is joined with."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return Workers()
    return Workers(rank=dist.get_rank(), size=dist.get_world_size())


@contextmanager
def join_workers() -> Iterator[Workers]:
    """Join the processes that torchrun started; without torchrun, this one is alone.

    Raises:
        UserError: only some of torchrun's settings are there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set, but {', '.join(missing)} is not: start the processes with torchrun"
        )
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=BARRIER_TIMEOUT)
    try:
        yield current_workers()
        dist.barrier()  # they leave together: the first holds the store that all need
    finally:
        dist.destroy_process_group()
