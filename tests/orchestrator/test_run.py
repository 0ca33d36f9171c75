"""The line from plan to report, around a fake executor: what is run, recorded, shown."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chip_core.results import write_answered
from chip_core.trained import TrainedModel, write_trained
from chip_core.utils.errors import UserError
from orchestrator.executors.base import Job
from orchestrator.plan.plan import Plan
from orchestrator.report.writers.files import PAGE_FILE, report_folder
from orchestrator.run import run_study
from orchestrator.runner.jobs import make_jobs
from orchestrator.state.ledger import Ledger, lock_study
from orchestrator.utils.version import code_version

from .conftest import STUDY
from .fakes import FakeExecutor, FakeTracker, run_with_fakes, write_job_answers, write_job_result

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_a_study_runs_once(plan_of: PlanOf, tmp_path: Path) -> None:
    outcome, executor, tracker = run_with_fakes(plan_of(), tmp_path / "runs")
    assert executor.names[0] == "base"
    assert len(executor.names) == 9
    assert outcome.executed == 9
    assert not outcome.failed
    assert tracker.status == "FINISHED"
    assert [view.status for view in tracker.ended] == ["FINISHED"] * 9

    again, executor, tracker = run_with_fakes(plan_of(), tmp_path / "runs")
    assert executor.names == []
    assert len(tracker.opened) == 9
    assert again.summary.rows[1].figures == outcome.summary.rows[1].figures


def test_the_report_is_written_while_the_executor_closes(plan_of: PlanOf, tmp_path: Path) -> None:
    page, seen = report_folder(tmp_path / "runs", "small") / PAGE_FILE, list[bool]()

    class Closing(FakeExecutor):
        @contextmanager
        def open(self, jobs: Sequence[Job]) -> Iterator[None]:
            yield
            due = time.monotonic() + 60
            while not page.exists() and time.monotonic() < due:
                time.sleep(0.01)
            seen.append(page.exists())

    run_with_fakes(plan_of(), tmp_path / "runs", Closing())
    assert seen == [True]  # and it is closed when the run returns


def test_what_closing_an_executor_raises_is_raised(plan_of: PlanOf, tmp_path: Path) -> None:
    class Broken(FakeExecutor):
        @contextmanager
        def open(self, jobs: Sequence[Job]) -> Iterator[None]:
            yield
            raise RuntimeError("it does not close")

    with pytest.raises(RuntimeError, match="it does not close"):
        run_with_fakes(plan_of(), tmp_path / "runs", Broken())


def test_no_job_begins_where_the_tracker_refuses(plan_of: PlanOf, tmp_path: Path) -> None:
    class Wrong(FakeTracker):
        def confirm(self) -> None:
            raise UserError("fix it")

    executor, tracker = FakeExecutor(), Wrong()
    with pytest.raises(UserError, match="fix it"):
        run_study(
            plan_of(),
            workdir=tmp_path / "runs",
            executor=lambda: executor,
            tracker=tracker,
            console=Console(quiet=True),
        )
    assert executor.jobs == []
    assert tracker.status == "FAILED"


def test_figures_are_means_over_seeds_with_differences(plan_of: PlanOf, tmp_path: Path) -> None:
    outcome, _, tracker = run_with_fakes(plan_of(), tmp_path / "runs")
    rows = {row.name: row.figures["shapes/chair_i"] for row in outcome.summary.rows}
    assert rows["base (untrained)"].mean == 30
    # seeds 0 and 1 give 10 and 11: mean 10.5, deviation √(0.5² + 0.5²) / √1
    assert (rows["dpo, frozen"].mean, rows["dpo, frozen"].difference) == (10.5, None)
    assert rows["dpo, frozen"].sd == pytest.approx(0.5**0.5)
    assert rows["chip, frozen"].mean == 8.5
    assert rows["chip, frozen"].difference == pytest.approx(-2)
    arm = next(view for view in tracker.arms if view.arm.name == "chip, frozen")
    assert arm.figures["shapes/chair_i.difference"] == pytest.approx(-2)
    text = (tmp_path / "runs/studies/small/report/report.md").read_text()
    assert "| chip, frozen | 2 | 8.50 ± 0.71 (−2.00) |" in text
    assert "| base (untrained) | — | 30.00 |" in text
    with (tmp_path / "runs/studies/small/report/values.csv").open() as file:
        lines = list(csv.DictReader(file))
    values = [
        (line["arm"], line["seed"], float(line["value"]))
        for line in lines
        if line["metric"] == "shapes/chair_i"
    ]
    assert ("chip, trained", "1", 9.0) in values
    assert len(values) == 9


def test_one_seed_more_runs_its_trials_alone(plan_of: PlanOf, tmp_path: Path) -> None:
    run_with_fakes(plan_of(), tmp_path)
    _, executor, _ = run_with_fakes(plan_of(STUDY, seeds=[0, 1, 2]), tmp_path)
    assert [name.rsplit(" ", 1)[1] for name in executor.names] == ["2"] * 4


def test_a_failure_is_recorded_and_the_others_go_on(plan_of: PlanOf, tmp_path: Path) -> None:
    bad = "chip, frozen, seed 0"
    executor = FakeExecutor(failures={bad: "the loss is nan at step 3"})
    outcome, _, tracker = run_with_fakes(plan_of(), tmp_path, executor)
    assert outcome.failed == {bad: "the loss is nan at step 3"}
    assert outcome.executed == 9
    assert tracker.status == "FAILED"
    (view,) = [view for view in tracker.ended if view.status == "FAILED"]
    assert view.reason == "the loss is nan at step 3"
    assert outcome.summary.missing == ["chip, frozen, seed 0 (failed)"]
    row = next(row for row in outcome.summary.rows if row.name == "chip, frozen")
    assert row.figures["shapes/chair_i"].n == 1  # missing is missing, not 0
    # the next run tries what is missing, and nothing else
    outcome, executor, _ = run_with_fakes(plan_of(), tmp_path)
    assert executor.names == [bad]
    assert not outcome.summary.missing


def test_ctrl_c_marks_what_ran_as_killed(plan_of: PlanOf, tmp_path: Path) -> None:
    executor = FakeExecutor(interrupt_before="dpo, frozen, seed 1")
    outcome, _, tracker = run_with_fakes(plan_of(), tmp_path, executor)
    assert outcome.interrupted
    assert tracker.status == "KILLED"
    assert [view.trial.name for view in tracker.ended if view.status == "KILLED"] == [
        "dpo, frozen, seed 1"
    ]
    killed = [line for line in outcome.summary.missing if line.startswith("dpo, frozen, seed 1 ")]
    assert killed == ["dpo, frozen, seed 1 (killed)"]  # it did not fail
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    assert len(executor.names) == 4


def test_what_a_worker_finished_after_its_driver_died_is_not_run_again(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of()
    job, trial, _ = make_jobs(plan, Ledger(tmp_path), tmp_path)[2]
    write_job_result(job)
    _, executor, tracker = run_with_fakes(plan_of(), tmp_path)
    assert trial.name not in executor.names
    assert len(executor.names) == 8
    assert trial.name in [view.trial.name for view in tracker.opened]


def test_answers_are_scored_as_a_step_of_the_same_attempt(plan_of: PlanOf, tmp_path: Path) -> None:
    name = "dpo, frozen, seed 1"
    executor = FakeExecutor(answers=[name])
    outcome, _, tracker = run_with_fakes(plan_of(), tmp_path, executor)
    assert not outcome.failed
    assert outcome.executed == 9  # the step is no trial of its own
    answering, scoring = (job for job in executor.jobs if job.name == name)
    assert (scoring.answers, scoring.folder) == (answering.folder, answering.folder)
    assert (scoring.num_workers, scoring.is_training, answering.is_training) == (1, False, True)
    (view,) = [view for view in tracker.ended if view.trial.name == name]
    assert (view.status, view.metrics) == ("FINISHED", {"shapes/chair_i": 11.0})
    record = Ledger(tmp_path)[view.trial.fingerprint]
    assert (record.attempts, record.steps, record.finished) == (1, 5, {1})
    lines = (tmp_path / "ledger/ledger.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines if view.trial.fingerprint in line]
    assert [line["event"] for line in told] == ["started", "answered", "finished"]


def test_answers_that_are_there_are_scored_without_a_model(plan_of: PlanOf, tmp_path: Path) -> None:
    """The driver was stopped between a trial's two steps."""
    name = "dpo, frozen, seed 1"
    executor = FakeExecutor(answers=[name], interrupt_scoring=name)
    outcome, _, tracker = run_with_fakes(plan_of(), tmp_path, executor)
    assert outcome.interrupted
    assert [view.trial.name for view in tracker.ended if view.status == "KILLED"] == [name]
    first = executor.jobs[-2].folder
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    (scoring,) = [job for job in executor.jobs if job.name == name]
    assert (scoring.answers, scoring.folder.name) == (first, "attempt-2")
    assert (scoring.trained_model, scoring.resume_from) == (None, None)
    trial = next(trial for trial in plan_of().trials if trial.name == name)
    record = Ledger(tmp_path)[trial.fingerprint]
    assert record.model == str(first.relative_to(tmp_path))  # the first attempt's
    assert record.metrics(trial) == {"shapes/chair_i": 11.0}
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    assert executor.names == []


def test_answers_that_no_driver_saw_are_found(plan_of: PlanOf, tmp_path: Path) -> None:
    job, trial, _ = make_jobs(plan_of(), Ledger(tmp_path), tmp_path)[2]
    write_job_answers(job)
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    (scoring,) = [other for other in executor.jobs if other.name == trial.name]
    assert scoring.answers == job.folder


def test_answers_that_were_changed_are_not_scored(plan_of: PlanOf, tmp_path: Path) -> None:
    job, trial, _ = make_jobs(plan_of(), Ledger(tmp_path), tmp_path)[2]
    answered = write_job_answers(job)
    (job.folder / "responses").mkdir()
    (job.folder / "responses/report-shapes.jsonl").write_text("{}\n")
    marked = {"responses/report-shapes.jsonl": "0" * 64}
    write_answered(job.folder, replace(answered, files=marked))
    write_trained(job.folder, TrainedModel(steps=5, seconds=1.0))
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    (again,) = [other for other in executor.jobs if other.name == trial.name]
    assert again.answers is None
    assert again.resume_from == job.folder  # its model is there, and is asked again


def test_scoring_that_fails_is_made_again_alone(plan_of: PlanOf, tmp_path: Path) -> None:
    job, trial, _ = make_jobs(plan_of(), Ledger(tmp_path), tmp_path)[2]
    write_job_answers(job)
    executor = FakeExecutor(failures={trial.name: "no reply"})
    outcome, _, _ = run_with_fakes(plan_of(), tmp_path, executor)
    assert outcome.failed == {trial.name: "no reply"}
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    (again,) = executor.jobs
    assert (again.answers, again.folder.name) == (job.folder, "attempt-3")


def test_an_attempt_that_had_trained_is_gone_on_from(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of()
    job, trial, _ = make_jobs(plan, Ledger(tmp_path), tmp_path)[2]
    (job.folder / "model").mkdir(parents=True)
    write_trained(job.folder, TrainedModel(steps=5, seconds=1.0))
    (tmp_path / "trials" / trial.fingerprint[:16] / "attempt-2").mkdir()  # a later one that died
    again = next(
        other for other, its, _ in make_jobs(plan, Ledger(tmp_path), tmp_path) if its == trial
    )
    assert again.folder.name == "attempt-3"
    assert again.resume_from == job.folder
    assert [folder.name for folder in again.earlier_attempts] == ["attempt-2", "attempt-1"]


def test_a_half_written_attempt_is_run_again_elsewhere(plan_of: PlanOf, tmp_path: Path) -> None:
    job, trial, _ = make_jobs(plan_of(), Ledger(tmp_path), tmp_path)[2]
    job.folder.mkdir(parents=True)
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    (again,) = [other for other in executor.jobs if other.name == trial.name]
    assert again.folder.name == "attempt-2"


def test_a_new_benchmark_scores_and_does_not_train(plan_of: PlanOf, tmp_path: Path) -> None:
    run_with_fakes(plan_of(), tmp_path)
    more = STUDY.replace("report: [shapes]", "report: [shapes]\n  select: [shapes]")
    outcome, executor, _ = run_with_fakes(plan_of(more), tmp_path)
    assert len(executor.jobs) == 9
    for job in executor.jobs:
        assert [settings.name for settings in job.config.benchmarks.select] == ["shapes"]
        assert job.config.benchmarks.report == ()
        assert job.untrained or job.trained_model is not None
    assert outcome.summary.rows[1].figures["select/shapes/chair_i"].mean == 10.5


def test_another_study_reuses_equal_trials(plan_of: PlanOf, tmp_path: Path) -> None:
    run_with_fakes(plan_of(), tmp_path)
    other = STUDY.replace("study: small", "study: other").replace("[dpo, chip]", "[dpo, cmdpo]")
    _, executor, tracker = run_with_fakes(plan_of(other), tmp_path)
    assert len(executor.jobs) == 4  # cmdpo alone
    assert {view.reused_from for view in tracker.opened} == {"small"}


def test_collapsed_cells_are_run_once_and_shown_once(plan_of: PlanOf, tmp_path: Path) -> None:
    text = STUDY.replace(
        "vision_encoder: [frozen, trained]", "objective.weights.segment: [1, 3]"
    ).replace("vision_encoder: frozen", "objective.weights.segment: 1")
    outcome, executor, tracker = run_with_fakes(plan_of(text), tmp_path)
    assert len(executor.jobs) == 1 + 3 * 2
    assert [row.name for row in outcome.summary.rows] == [
        "base (untrained)",
        "dpo, 1|3",
        "chip, 1",
        "chip, 3",
    ]
    assert len(tracker.arms) == 3


def test_a_second_driver_is_told_and_stops(plan_of: PlanOf, tmp_path: Path) -> None:
    with lock_study(tmp_path, "small"):
        with pytest.raises(UserError, match=r"study small is being run by process \d+ on "):
            run_with_fakes(plan_of(), tmp_path)
        other = STUDY.replace("study: small", "study: other")
        run_with_fakes(plan_of(other), tmp_path)  # another study may
    run_with_fakes(plan_of(), tmp_path)


def test_a_record_that_a_crash_cut_off_is_passed_over(plan_of: PlanOf, tmp_path: Path) -> None:
    run_with_fakes(plan_of(), tmp_path)
    file = tmp_path / "ledger" / "ledger.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    _, executor, _ = run_with_fakes(plan_of(), tmp_path)
    assert executor.names == []  # the last trial's result is still in its folder
    assert Ledger(tmp_path)[plan_of().trials[-1].fingerprint].is_done(plan_of().trials[-1])


def test_a_work_directory_that_is_a_file_is_told(plan_of: PlanOf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir: .* cannot be written"):
        run_with_fakes(plan_of(), tmp_path / "file" / "runs")


def test_the_ledger_says_when_and_with_which_code_a_trial_ran(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    bad = "chip, frozen, seed 0"
    run_with_fakes(plan_of(), tmp_path, FakeExecutor(failures={bad: "the loss is nan"}))
    run_with_fakes(plan_of(), tmp_path)
    plan = plan_of()
    trial = next(trial for trial in plan.trials if trial.name == bad)
    first, second = Ledger(tmp_path)[trial.fingerprint].history.values()
    assert (first.outcome, first.folder) == ("failed", None)
    assert (second.outcome, second.study) == ("finished", "small")
    assert second.folder is not None and second.folder.endswith("attempt-2")
    assert second.code == code_version()
    assert first.started is not None and first.ended is not None and second.started is not None
    assert first.started <= first.ended <= second.started


def test_a_record_without_its_code_is_read_all_the_same(plan_of: PlanOf, tmp_path: Path) -> None:
    run_with_fakes(plan_of(), tmp_path)
    file = tmp_path / "ledger" / "ledger.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    for entry in entries:
        entry.pop("code", None)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    record = Ledger(tmp_path)[plan_of().trials[1].fingerprint]
    assert record.history[1].code is None
    assert record.history[1].outcome == "finished"
