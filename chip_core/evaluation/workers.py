"""The workers of a trial, as torch.distributed has them; without it there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from chip_core.errors import TrialError

T = TypeVar("T")


def rank() -> int:
    """Return this worker's number, from 0."""
    return dist.get_rank() if _several() else 0


def count() -> int:
    """Return how many workers there are."""
    return dist.get_world_size() if _several() else 1


def gathered(make: Callable[[], T]) -> list[T]:
    """Return what each worker makes, in order of their numbers, on every worker.

    Raises:
        Exception: what this worker's `make` raised; TrialError where another's did.
    """
    failure: Exception | None = None
    made: T | None = None
    try:
        made = make()
    except Exception as error:  # the others wait for this one: they are told before it is raised
        failure = error
    if not _several():
        if failure is not None:
            raise failure
        return [made]  # type: ignore[list-item]
    all_made: list[Any] = [None] * count()
    dist.all_gather_object(all_made, (_reason(failure), made))
    if failure is not None:
        raise failure
    for worker, (reason, _) in enumerate(all_made):
        if reason is not None:
            raise TrialError(f"worker {worker}: {reason}")
    return [value for _, value in all_made]


def from_first(make: Callable[[], T]) -> T:
    """Return what the first worker makes, on every worker; the others make nothing.

    Raises:
        Exception: as `gathered`.
    """
    return gathered(lambda: make() if rank() == 0 else None)[0]  # type: ignore[return-value]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _reason(failure: Exception | None) -> str | None:
    if failure is None:
        return None
    text = (str(failure).splitlines() or [""])[0]
    return text if isinstance(failure, TrialError) else f"{type(failure).__name__}: {text}"
