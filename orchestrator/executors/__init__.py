"""Where trials run: in this process, or on Ray. A module each, with a `make_executor`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from orchestrator.executors.base import Executor, ExecutorSettings

#: Name, as `--executor` takes it -> module. Ray is imported only where it is used.
EXECUTORS = {
    "ray": "orchestrator.executors.ray.tuner",
    "inline": "orchestrator.executors.inline",
}


def make_executor(name: str, settings: ExecutorSettings) -> Executor:
    """Make an executor by its name in `EXECUTORS`."""
    module = importlib.import_module(EXECUTORS[name])
    return cast("Executor", module.make_executor(settings))
