"""Studies with their cells, arms and trials written out by hand, in golden/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from chip_core import recipes
from chip_core.utils.errors import ConfigError
from orchestrator.plan.plan import Plan
from orchestrator.study.design import iter_layout_notes

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.yaml"))
PlanOf = Callable[..., Plan]


def assert_plan_is(plan: Plan, expected: Mapping[str, Any]) -> None:
    """Compare a plan with what was written by hand; the order of cells and arms counts."""
    assert list(plan.study.cells) == expected["cells"]
    assert [list(cell) for cell in plan.study.cells] == [list(cell) for cell in expected["cells"]]
    assert plan.study.baseline == expected["baseline"]
    assert [arm.name for arm in plan.arms] == expected["arms"]
    assert [dict(cell) for cell in plan.baseline.cells].count(expected["baseline"]) == 1
    assert sorted(str(cell) for arm in plan.arms for cell in arm.cells) == sorted(
        map(str, expected["cells"])
    )
    assert len(plan.trials) == expected["trials"]
    assert {arm.name: list(arm.reasons) for arm in plan.arms if arm.reasons} == expected.get(
        "reasons", {}
    )
    if "seeds" in expected:
        assert list(plan.study.seeds) == expected["seeds"]
    if "notes" in expected:
        assert list(iter_layout_notes(plan.study)) == expected["notes"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_study(path: Path, plan_of: PlanOf) -> None:
    golden = recipes.read_yaml(path)

    def planned(study: Mapping[str, Any]) -> Plan:
        return plan_of(yaml.safe_dump(dict(study), sort_keys=False))

    before: set[str] = set()
    if "problem" in golden:
        with pytest.raises(ConfigError) as caught:
            planned(golden["study"])
        (line,) = caught.value.problems
        assert line.endswith(f"study.yaml: {golden['problem']}")
    else:
        plan = planned(golden["study"])
        assert_plan_is(plan, golden)
        before = {trial.fingerprint for trial in plan.trials}
    if "then" in golden:
        after = planned({**golden["study"], **golden["then"]["change"]})
        assert_plan_is(after, golden["then"])
        kept = before & {trial.fingerprint for trial in after.trials}
        assert len(kept) == golden["then"].get("kept", 0)
