"""What fits where."""

from __future__ import annotations

from chip_core.config.trial import EngineConfig
from orchestrator.jobs.placement import (
    ResourceRequest,
    count_slots,
    format_resources,
    placement_strategy,
    worker_resources,
)

NODES = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0}]


def test_trials_of_several_workers() -> None:
    each = {"CPU": 1.0, "GPU": 1.0}
    one, two, four, six = (
        ResourceRequest(num_workers=workers, per_worker=each) for workers in (1, 2, 4, 6)
    )
    assert count_slots(one, NODES) == 7
    assert count_slots(two, NODES) == 3  # two on the first node, one on the second
    assert count_slots(four, NODES) == 1
    assert count_slots(six, NODES) == 1  # over two nodes
    assert [placement_strategy(request, NODES) for request in (two, four, six)] == [
        "STRICT_PACK", "STRICT_PACK", "PACK",
    ]  # fmt: skip


def test_a_share_of_a_gpu() -> None:
    each = worker_resources(EngineConfig(gpus_per_worker=0.2))
    assert each == {"CPU": 1.0, "GPU": 0.2} and format_resources(each) == "1 CPU and 0.2 GPU"
    # 0.6 / 0.2 is 2.9999999999999996 in floats
    assert (
        count_slots(ResourceRequest(num_workers=1, per_worker=each), [{"CPU": 9.0, "GPU": 0.6}])
        == 3
    )
    assert worker_resources(EngineConfig()) == {"CPU": 1.0}
