"""What more seeds would buy."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.analysis import detectable_difference, seeds_needed
from orchestrator.report.layout import Table, TextBlock
from orchestrator.report.sections.power import power_blocks

from ..conftest import STUDY, FinishedStudy

Run = Callable[..., FinishedStudy]


def test_the_difference_that_can_be_seen_by_seeds(make_finished_study: Run) -> None:
    summary = make_finished_study().summary
    words, table = power_blocks(summary)
    assert isinstance(words, TextBlock) and isinstance(table, Table)
    contrasts = [row.figures["shapes/chair_i"].comparison.contrast for row in summary.rows[2:]]
    now = [detectable_difference(one, 3, family=3) for one in contrasts]
    texts = [[cell.text for cell in row.cells] for row in table.rows]
    assert texts[0] == ["3 (now)", f"{min(now):.2f}", f"{max(now):.2f}"]
    assert [row[0] for row in texts] == ["3 (now)", "5", "10", "20"]
    assert float(texts[3][2]) < float(texts[0][2])
    assert words.lines[0].startswith(
        f"With 3 seeds and 30 items a difference of {min(now):.2f} to {max(now):.2f} points"
    )


def test_with_a_delta_the_seeds_that_open_arms_need(make_finished_study: Run) -> None:
    text = STUDY.replace("goal: minimize}", "smallest_difference: 2}")
    summary = make_finished_study(text).summary
    needed = power_blocks(summary)[-1]
    assert isinstance(needed, Table) and needed.name == "seeds-needed"
    by_arm = {row.cells[0].text: row.cells[1].text for row in needed.rows}
    one = next(row for row in summary.rows if row.name == "dpo, trained")
    contrast = one.figures["shapes/chair_i"].comparison.contrast
    assert by_arm["dpo, trained"] == seeds_needed(contrast, 2, family=3).text
    assert "chip, frozen" not in by_arm  # it has its answer


def test_one_seed_tells_nothing_of_seeds(make_finished_study: Run) -> None:
    assert power_blocks(make_finished_study(STUDY.replace("[0, 1, 2]", "[0]")).summary) == []
