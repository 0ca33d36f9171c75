"""What is left of a study whose arms choose their settings: searches, and the seeds that wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.cost.workload import Workload, build_workload
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import resolve_search

from ..tuned_study import STUDY, run_missing_trials


def make_workload(plan: Plan, folder: Path) -> Workload:
    ledger = Ledger(folder)
    return build_workload(resolve_search(plan, ledger), ledger, folder)


def test_seeds_that_wait_for_their_search_count(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of(STUDY)
    found = make_workload(plan, tmp_path).trials
    # the untrained model, 2 arms x 3 draws, 2 arms x 2 seeds that wait
    assert len(found) == 1 + 6 + 4
    assert sum("search" in each.trial.name for each in found) == 6
    assert all(each.training is not None for each in found[1:])
    waiting = [each.trial.config.optimizer.lr for each in found[7:]]
    assert waiting == [plan.base.config.optimizer.lr] * 4


def test_a_search_that_came_to_nothing_leaves_no_seeds(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of(STUDY)
    lost = {
        trial.name: "the loss is nan"
        for trial in resolve_search(plan, Ledger(tmp_path)).trials
        if trial.name.startswith("chip: search")
    }
    assert len(lost) == 3
    run_missing_trials(plan, tmp_path, lost)
    # the three draws are tried again; the arm's two seeds are not counted while it has failed
    names = [each.trial.name for each in make_workload(plan, tmp_path).trials]
    assert sorted(names) == sorted(lost)
