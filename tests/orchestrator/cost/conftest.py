"""Work of a study with rates that are round numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cost.rates import ANY_KIND, Quantity, Rates, RateSource, Seconds
from orchestrator.cost.workload import Workload, build_workload
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger

#: 10 steps a trial, 20 answers a model; the passes do not pay for four trials of 160 samples.
STUDY = """
study: small
recipe: shapes
factors:
  objective: [dpo, chip]
  optimizer.lr: [1e-5, 1e-6]
seeds: [0, 1, 2]
baseline: {objective: dpo, optimizer.lr: 1e-5}
benchmarks:
  report: [{name: shapes, limit: 20}]
primary: {metric: shapes/chair_i, goal: minimize}
"""
#: One server answers for all arms, which train adapters.
SERVED = f"""{STUDY}
evaluation:
  generator: {{kind: vllm, serves: study, options: {{tensor_parallel_size: 2}}}}
"""
ADAPTERS = {"language_model": "lora", "vision_encoder": "frozen", "projector": "frozen"}
SHORT = {"training.max_steps": 10, "engine.feature_cache": "off"}


def make_seconds(wall: float, cpu: float | None = None) -> Seconds:
    return Seconds(wall=wall, cpu=wall if cpu is None else cpu)


def make_rates(**rates: float | Seconds) -> Rates:
    """Make rates of every kind, by quantity; a number is both times."""
    times: dict[tuple[Quantity, str], Seconds] = {
        (name, ANY_KIND): rate if isinstance(rate, Seconds) else make_seconds(rate)  # type: ignore[misc]
        for name, rate in rates.items()
    }
    return Rates(sources=[RateSource(name="a test", rates=times)])


@pytest.fixture
def small_plan(plan_of: Callable[..., Plan]) -> Plan:
    return plan_of(STUDY, overrides=SHORT)


@pytest.fixture
def make_workload(tmp_path: Path) -> Callable[[Plan], Workload]:
    """What is left of a plan in a work directory."""
    return lambda plan: build_workload(plan, Ledger(tmp_path), tmp_path)
