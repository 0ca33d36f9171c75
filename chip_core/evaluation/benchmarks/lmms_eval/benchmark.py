"""MMBench, MMBench-CN and MM-Vet: lmms-eval generates and scores answers in its own process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from chip_core.evaluation.benchmarks.lmms_eval import runner
from chip_core.evaluation.scorer import Scored
from chip_core.evaluation.task import BENCHMARKS, ExternalBenchmark, MetricInfo


class LmmsEvalBenchmark(ExternalBenchmark):
    """A benchmark that lmms-eval runs."""

    version = "lmms-1"  # of this interface; lmms-eval's own is recorded with the figures

    def __init__(self, name: str, metrics: Mapping[str, MetricInfo]) -> None:
        """Set the benchmark's name and metrics."""
        self.name = name
        self.metrics = metrics

    def tools(self) -> Mapping[str, str]:
        """Return lmms-eval's version."""
        return {"program": _cached_version(runner.python())}

    def problems(self) -> list[str]:
        """Return what lmms-eval lacks."""
        return runner.problems([self.name])

    def ask(
        self, model: Path, *, folder: Path, batch_size: int, device: str
    ) -> tuple[Scored, Mapping[str, Any]]:
        """Run it on a model; its own output goes to a folder."""
        scores = runner.evaluate(
            model, [self.name], folder=folder, batch_size=batch_size, device=device
        )
        judge = {} if scores.judge is None else {"judge": {"model": scores.judge}}
        return scores.scored[self.name], {"program": scores.version, **judge}


@lru_cache
def _cached_version(python: str) -> str:
    """Return lmms-eval's version, cached because it takes seconds to find."""
    return runner.version()


for _name, _metrics in runner.METRICS.items():
    BENCHMARKS.register(_name)(LmmsEvalBenchmark(_name, _metrics))
