"""What each arm cost."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.report.sections.costs import arm_costs, cost_table

from ..conftest import FinishedStudy


def test_seconds_by_what_they_were_spent_on(
    make_finished_study: Callable[..., FinishedStudy],
) -> None:
    made = make_finished_study(without=["chip, trained, seed 2"])
    found = {cost.name: cost for cost in arm_costs(made.plan, made.ledger)}
    cost = found["chip, trained"]
    assert (cost.trials, cost.train, cost.answer, cost.score, cost.other) == (
        2,
        10.0,
        3.0,
        1.0,
        1.0,
    )
    assert (cost.per_trial, cost.total) == (15.0, 30.0)
    table = cost_table(list(found.values()))
    assert [cell.text for cell in table.rows[0].cells] == [
        "dpo, frozen", "3", "10.0", "3.0", "1.0", "1.0", "15.0", "45.0",
    ]  # fmt: skip
