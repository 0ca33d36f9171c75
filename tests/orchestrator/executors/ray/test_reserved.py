"""GPUs that are kept from jobs for a study's server, and machines that it does not reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.utils import machine
from chip_core.utils.errors import UserError
from orchestrator.executors.base import Job
from orchestrator.executors.inline import InlineExecutor
from orchestrator.executors.ray import session


def make_job(gpus: float) -> Job:
    config = TrialConfig.model_validate({"model": "shapes", "engine": {"gpus_per_worker": gpus}})
    return Job(id="a-1", name="a", config=config, folder=Path("a"))


def test_inline_the_last_gpus_are_the_server_s(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = InlineExecutor()
    monkeypatch.setattr(machine, "visible_gpus", list)
    with executor.reserve_gpus(2) as none:
        assert none == ()
    monkeypatch.setattr(machine, "visible_gpus", lambda: ["4", "5", "6"])
    with executor.reserve_gpus(2) as held:
        assert held == ["5", "6"]
    with pytest.raises(UserError, match="needs 3 GPU of its own .*sees 3: write serves: trial"):
        executor.reserve_gpus(3).__enter__()
    on_cpu = TrialConfig.model_validate({"model": "shapes", "engine": {"device": "cpu"}})
    with executor.open([replace(make_job(0.0), config=on_cpu)]), executor.reserve_gpus(3) as none:
        assert none == ()


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([{"CPU": 4}, {"CPU": 4}], "reached only from its own machine, but this cluster has 2: "),
        (
            [{"CPU": 4, "GPU": 1}],
            "next to the study's server, which holds 1 GPU, this machine has 4 CPU and 0 GPU: "
            "lower",
        ),
    ],
)
def test_on_ray_what_cannot_be_held_is_refused(
    nodes: list[dict[str, Any]], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "alive_node_resources", lambda: nodes)
    with pytest.raises(UserError, match=problem), session.reserve_node_gpus(1, [make_job(1.0)]):
        pass


def test_jobs_at_once_are_those_beside_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_local_resources", lambda: {"CPU": 8.0, "GPU": 4.0})
    assert session.count_concurrent_jobs(None, [make_job(1.0)], None) == 4
    assert session.count_concurrent_jobs(None, [make_job(1.0)], None, reserved_gpus=1) == 3
