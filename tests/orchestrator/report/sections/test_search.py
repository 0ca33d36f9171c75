"""What the report, the plan and the status say of the arms' searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.plan.plan import Plan
from orchestrator.report.build import make_report
from orchestrator.report.layout import Table, TextBlock
from orchestrator.report.sections.notes import build_notes
from orchestrator.report.sections.search import SEARCH_CAUTION, compute_search_cost, search_blocks
from orchestrator.report.writers.files import write_report
from orchestrator.report.writers.plan import plan_lines, plan_to_json, status_lines, trial_table
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import plan_searches, resolve_search

from ...tuned_study import STUDY, run_missing_trials

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")

#: Figures are rates in units of 1e-5: dpo 1, 5, 10 and chip half of that.
LOST = "chip: search 1 of 3 (optimizer.lr=1e-5)"


@pytest.fixture
def tuned_plan(plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[..., None]) -> Plan:
    set_trial_metric(
        lambda job: job.config.optimizer.lr * (1e5 if job.config.objective.preset == "dpo" else 5e4)
    )
    return run_missing_trials(plan_of(STUDY), tmp_path, {LOST: "the loss is nan"})


def list_cell_texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in table.rows]


def test_the_report_says_what_was_chosen_on_what_and_what_it_cost(
    tuned_plan: Plan, tmp_path: Path
) -> None:
    words, choices, draws = search_blocks(tuned_plan, Ledger(tmp_path))
    assert isinstance(words, TextBlock) and isinstance(choices, Table) and isinstance(draws, Table)
    said = " ".join(words.lines)
    assert (
        "Chosen on select/shapes/chair_i, the lowest, using only questions under `select`" in said
    )
    assert "Reported on shapes under `report`" in said
    assert "the same 3 draws (optimizer.lr: 1e-5, 5e-5, 0.0001)" in said
    assert "seed 1000, which is not one of the study's seeds: 6 trials in all" in said
    # arm, key, figure, trials, failed, of another study; seconds are the machine's
    rows = list_cell_texts(choices)
    assert [row[:6] for row in rows] == [
        ["dpo", "1e-5", "1.00", "3", "0", "0"],
        ["chip", "5e-5", "2.50", "3", "1", "0"],
        ["all arms", "", "", "6", "1", "0"],
    ]
    assert list_cell_texts(draws) == [
        ["1", "1e-5", "1.00", "failed"],
        ["2", "5e-5", "5.00", "2.50"],
        ["3", "0.0001", "10.00", "5.00"],
    ]
    bold = [[cell.bold for cell in row.cells[2:]] for row in draws.rows]
    assert bold == [[True, False], [False, True], [False, False]]


def test_it_is_in_every_form_of_the_report(tuned_plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(make_report(tuned_plan, Ledger(tmp_path), tmp_path, folder), folder)
    for name in ("report.html", "report.md", "report.tex"):
        text = (folder / name).read_text()
        assert "What each arm chose" in text
        assert SEARCH_CAUTION in text
    found = json.loads((folder / "provenance.json").read_text())
    assert found["search"]["chosen_on"] == found["search"]["quoted_from"] == ["shapes"]
    searched = [entry for entry in found["trials"] if entry["searched"] is not None]
    assert len(searched) == 6
    assert all(not entry["config"]["benchmarks"]["report"] for entry in searched)
    seeds = [entry for entry in found["trials"] if entry["seed"] in (0, 1)]
    assert {(entry["arm"], entry["config"]["optimizer"]["lr"]) for entry in seeds} == {
        ("dpo", 1e-5),
        ("chip", 5e-5),
    }


def test_plan_and_status_show_the_search(tuned_plan: Plan, plan_of: PlanOf, tmp_path: Path) -> None:
    def shown(plan: Plan, workdir: Path) -> str:
        console = Console(width=200, record=True, quiet=True)
        console.quiet, console.file = False, (workdir / "shown.txt").open("w")
        for line in (*plan_lines(plan, workdir), *status_lines(plan, workdir)):
            console.print(line)
        console.print(trial_table(plan, workdir))
        return console.export_text()

    text = shown(tuned_plan, tmp_path)
    assert "by select/shapes/chair_i (minimize): 6 trials, 5 done, 1 to run" in text
    assert "dpo chose optimizer.lr=1e-5 (1.00)" in text
    assert "chip chose optimizer.lr=5e-5 (2.50)" in text
    (tmp_path / "new").mkdir()
    before = shown(resolve_search(plan_of(STUDY), Ledger(tmp_path / "new")), tmp_path / "new")
    assert "6 trials, 0 done, 6 to run" in before
    assert "4 trials of the seeds wait for their arms' choices" in before
    assert before.count("waits: its search has not ended") == 4
    # 6 search trials of 500 questions, the untrained model and 4 of the seeds of 1,000
    assert f"{6 * 500 + 5 * 1000:,} answers to generate" in before


def test_json_of_plan_and_status(tuned_plan: Plan, plan_of: PlanOf, tmp_path: Path) -> None:
    found = plan_to_json(tuned_plan, tmp_path)
    assert [arm["tuned"] for arm in found["arms"]] == [
        {"optimizer.lr": "1e-5"},
        {"optimizer.lr": "5e-5"},
    ]
    dpo, chip = found["search"]["arms"]
    assert (dpo["state"], dpo["chosen"], dpo["figure"]) == (
        "chosen", {"optimizer.lr": 1e-5}, pytest.approx(1.0),
    )  # fmt: skip
    assert chip["draws"][0]["failed"] == "the loss is nan"
    assert chip["draws"][0]["figure"] is None
    assert chip["cost"]["trials"] == 3
    searched = [trial["search"] for trial in found["trials"] if trial["search"]]
    assert [entry["of"] for entry in searched] == ["dpo", "chip"] * 3
    before = plan_to_json(
        resolve_search(plan_of(STUDY), Ledger(tmp_path / "new")), tmp_path / "new"
    )
    held = [trial for trial in before["trials"] if trial["fingerprint"] is None]
    assert [trial["state"] for trial in held] == ["waits: its search has not ended"] * 4
    json.dumps(before)


def test_what_a_search_cost(tuned_plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    dpo, chip = plan_searches(tuned_plan)
    for trial in (*dpo.trials, *chip.trials):
        for attempt in ledger[trial.fingerprint].history.values():
            attempt.started, attempt.ended = 100.0, 104.0
    cost = compute_search_cost(chip.trials, ledger, "tuned")
    assert (cost.trials, cost.failed, cost.reused) == (3, 1, 0)
    assert (cost.seconds, cost.cpu_seconds, cost.gpu_seconds) == (12.0, 12.0, 0.0)  # 3 of 4 s
    # The failed trial was never done, so it is not reused.
    assert compute_search_cost(chip.trials, ledger, "another").reused == 2
    last = next(iter(ledger[dpo.trials[0].fingerprint].history.values()))
    last.started = None  # taken over from a driver that died: what it left of its phases counts
    assert compute_search_cost(dpo.trials[:1], ledger, "tuned").seconds == 2.0


def test_a_study_that_tunes_nothing_says_so(plan_of: PlanOf, tmp_path: Path) -> None:
    from orchestrator.report.outcomes import load_scores
    from orchestrator.report.summary import build_summary

    plan = plan_of(STUDY[: STUDY.index("tune:")])
    ledger = Ledger(tmp_path)
    said = build_notes(build_summary(plan, ledger, load_scores(plan, ledger, tmp_path)))
    assert any("The study did not tune anything itself." in line for line in said)
    assert search_blocks(plan, ledger) == []
