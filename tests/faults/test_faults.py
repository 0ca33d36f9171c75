"""The harness' own parts, and a short selection of faults. `make faults N=20` runs more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from tests.faults.kinds import KINDS, Fault, draw_schedules, fill_disk, mount_small_disk
from tests.faults.run import run_case, run_undisturbed
from tests.faults.study_state import StudyState, find_differences
from tests.faults.world import STEPS, open_cluster


def test_schedules_are_a_function_of_the_seed_and_use_every_kind_alike() -> None:
    drawn = draw_schedules(14, 3, each=2)
    assert drawn == draw_schedules(14, 3, each=2)
    assert drawn != draw_schedules(14, 4, each=2)
    counts = Counter(fault.kind for faults in drawn for fault in faults)
    assert counts.keys() == KINDS.keys()
    # 28 faults of 18 kinds; one may come again before a last one that fits beside no other
    assert max(counts.values()) - min(counts.values()) <= 2
    for first, second in drawn:
        assert first.kind != second.kind
        assert {KINDS[first.kind].workers, KINDS[second.kind].workers} != {1, 2}
        assert 1 <= second.step <= STEPS // 2


def test_a_slot_is_killed_in_its_second_trial_before_another_fault_ends_it() -> None:
    kinds = ["NaN loss", "slot killed in a second trial", "slot killed"]
    drawn = draw_schedules(3, 0, each=2, kinds=kinds)
    pairs = {tuple(fault.kind for fault in faults) for faults in drawn}
    assert {second for _, second in pairs} == {"NaN loss", "slot killed"}
    assert KINDS["slot killed in a second trial"].job == 2


def test_a_small_disk_is_full_when_it_is_filled(tmp_path: Path) -> None:
    with mount_small_disk(tmp_path / "disk", "64k") as disk:
        if disk is None:
            pytest.skip("no disk can be mounted here")
        fill_disk(disk)
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(b"1" * 4096)
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_figure_that_differs_in_its_last_bit_is_told() -> None:
    undisturbed = StudyState(
        figures={"dpo": [{"a": 0.1}]}, weights={"dpo": "x"}, losses={"dpo": [(1, 0.5)]}
    )
    other = StudyState(figures={"dpo": [{"a": 0.1 + 2**-56}]}, weights={"dpo": "x"}, losses={})
    assert 0.1 + 2**-56 != 0.1
    assert find_differences(other, undisturbed) == ["figures of dpo", "losses of dpo"]
    assert find_differences(undisturbed, undisturbed) == []


@pytest.mark.ray
@pytest.mark.e2e
def test_a_worker_and_then_the_studys_driver_are_killed(
    tmp_path: Path, with_store: Callable[[Path], Path]
) -> None:
    faults = [
        Fault(kind="slot killed in a second trial", step=4),
        Fault(kind="study's driver killed", step=2),
    ]
    expected = run_undisturbed(with_store(tmp_path / "undisturbed"))
    try:
        with open_cluster() as world:
            outcome = run_case(world, faults, with_store(tmp_path / "spoilt"), expected)
    finally:
        ray.shutdown()
    assert outcome.survived, outcome
    assert [fault.kind for fault in outcome.faults] == [fault.kind for fault in faults]
    assert outcome.exits == [-9, 0]
    # from step 4's checkpoint; where this machine is busy, it may have come to step 6's
    assert outcome.faults[0].from_step in (5, 7)
