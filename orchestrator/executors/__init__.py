"""Executors run trials in this process or on Ray. Each module has a `make_executor`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from orchestrator.executors.base import Executor, ExecutorSettings

#: Module by name, as in `--executor`. Ray is imported only if it is used.
EXECUTORS = {
    "ray": "orchestrator.executors.ray.tuner",
    "inline": "orchestrator.executors.inline",
}


def make_executor(name: str, settings: ExecutorSettings) -> Executor:
    """Make an executor by its name in `EXECUTORS`."""
    module = importlib.import_module(EXECUTORS[name])
    return cast("Executor", module.make_executor(settings))
