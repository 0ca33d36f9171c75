"""`early_stopping:`: what may decide and what is refused; what a cut trial is afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from chip_core.utils.errors import ConfigError
from orchestrator.cli import cli
from orchestrator.executors.base import (
    Job,
    JobEvent,
    JobSource,
    JobStarted,
    JobStoppedEarly,
    RetryPolicy,
)
from orchestrator.plan.plan import Plan
from orchestrator.report.sections.notes import build_notes
from orchestrator.report.writers.plan import trial_state
from orchestrator.run import RunOutcome
from orchestrator.runner.jobs import make_jobs
from orchestrator.state.cache_plan import plan_caches
from orchestrator.state.ledger import Ledger
from orchestrator.study.model import Study

from ..fakes import FakeExecutor, FakeTracker, run_with_fakes

Load = Callable[..., Study]
PlanOf = Callable[..., Plan]

STUDY = """
study: small
factors: {objective: [dpo, chip]}
seeds: [0, 1]
benchmarks: {select: [shapes], report: [shapes]}
primary: {metric: shapes/chair_i, goal: minimize}
early_stopping: {method: asha, metric: reward/accuracy}
"""
WHY = "cut by early stopping at step 2 of 5"
LOSER = "chip, seed 1"


def make_study_text(block: str) -> str:
    return STUDY.replace("{method: asha, metric: reward/accuracy}", block)


def test_a_rule_is_read_with_what_is_not_said(load: Load) -> None:
    rule = load(STUDY).early_stopping
    assert rule is not None
    assert rule.description == "asha on reward/accuracy, grace 25 %, reduction factor 3"
    assert rule.goal == "maximize"
    median = load(
        make_study_text("{method: median, metric: reward/margin, grace: 0.5}")
    ).early_stopping
    assert median is not None
    assert median.description == "median on reward/margin, grace 50 %, 3 others at least"


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (
            "{method: asha, metric: shapes/chair_i}",
            "is under `report`, which must not decide anything",
        ),
        ("{method: asha, metric: select/shapes/chair_i}", "too late to cut it"),
        ("{method: asha, metric: reward/accurcy}", "did you mean 'reward/accuracy'"),
        ("{method: asha, metric: loss}", "losses of different objectives cannot be compared"),
        ("{method: asha, metric: reward/margin, grace: 1.0}", "early_stopping.grace"),
        ("{method: asha, metric: reward/margin, min_trials: 2}", "min_trials is only for median"),
        ("{method: median, metric: reward/margin, reduction_factor: 2}", "is only for asha"),
        ("{method: hyperband, metric: reward/margin}", "early_stopping.method"),
        (
            "{method: asha, metric: reward/margin}\n"
            "tune: {keys: {optimizer.lr: [1e-5, 1e-6]}, metric: select/shapes/chair_i}",
            "cannot be used with `tune:`",
        ),
    ],
)
def test_what_must_not_decide_is_refused(load: Load, block: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(make_study_text(block))
    [line] = [line for line in error.value.problems if "early_stopping" in line]
    assert told in line


def test_losses_of_one_objective_may_decide(load: Load) -> None:
    text = make_study_text("{method: asha, metric: loss}").replace(
        "objective: [dpo, chip]", "vision_encoder: [frozen, trained]"
    )
    rule = load(text).early_stopping
    assert rule is not None
    assert rule.goal == "minimize"


def test_it_is_off_by_default_and_changes_no_fingerprint(plan_of: PlanOf) -> None:
    without = plan_of(STUDY.replace("early_stopping", "# early_stopping"))
    assert without.study.early_stopping is None
    marks = [trial.fingerprint for trial in without.trials]
    assert marks == [trial.fingerprint for trial in plan_of(STUDY).trials]


def test_the_baseline_and_the_untrained_model_are_never_cut(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(STUDY)
    jobs = {
        job.name: job.can_stop_early for job, _, _ in make_jobs(plan, Ledger(tmp_path), tmp_path)
    }
    assert [name for name, may_be in jobs.items() if may_be] == ["chip, seed 0", "chip, seed 1"]
    placebo = plan_of(STUDY + "\nplacebo: true\n")
    of_placebo = [job for job, trial, _ in make_jobs(placebo, Ledger(tmp_path), tmp_path)
                  if trial.arm == "placebo"]  # fmt: skip
    assert len(of_placebo) == 2 and not any(job.can_stop_early for job in of_placebo)
    off = plan_of(STUDY.replace("early_stopping", "# early_stopping"))
    assert not any(job.can_stop_early for job, _, _ in make_jobs(off, Ledger(tmp_path), tmp_path))


@dataclass
class EarlyStoppingExecutor(FakeExecutor):
    """Cuts one trial, as the Ray executor would."""

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        more: JobSource | None = None,
    ) -> None:
        left = deque(jobs)
        while left:
            job = left.popleft()
            if job.name == LOSER and job.can_stop_early:
                self.jobs.append(job)
                on_event(JobStarted(job=job))
                on_event(JobStoppedEarly(job=job, reason=WHY))
            else:
                super().run([job], on_event, retry)
            if not left and more is not None:
                left.extend(more() or ())


def run(plan: Plan, workdir: Path) -> tuple[RunOutcome, FakeExecutor, FakeTracker]:
    return run_with_fakes(plan, workdir, EarlyStoppingExecutor())


@pytest.mark.usefixtures("blank_figures")
def test_a_cut_trial_has_no_figures_and_is_said_to_be_cut(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of(STUDY)
    outcome, _, tracker = run(plan, tmp_path)
    assert not outcome.failed  # it is no failure: the run ends with 0
    row = next(row for row in outcome.summary.rows if row.name == "chip")
    assert row.states == {0: "done", 1: "cut"}
    assert row.figures["shapes/chair_i"].n == 1
    [said] = [note for note in build_notes(outcome.summary) if note.startswith("Early stopping")]
    assert "Cut: chip (1 seed of 2)" in said
    assert "not a fair comparison" in said
    [view] = [view for view in tracker.ended if view.trial.name == LOSER]
    assert (view.status, view.reason) == ("KILLED", WHY)
    assert view.cut == "asha on reward/accuracy, grace 25 %, reduction factor 3"
    assert {view.arm.name: view.status for view in tracker.arms} == {
        "dpo": "FINISHED",
        "chip": "KILLED",
    }
    trial = next(trial for trial in plan.trials if trial.name == LOSER)
    record = Ledger(tmp_path)[trial.fingerprint]
    assert record.history[1].outcome == "cut"
    assert not record.is_done(trial)
    assert trial_state(trial, record) == WHY


@pytest.mark.usefixtures("blank_figures")
def test_a_cut_trial_stays_cut_by_the_same_rule_and_is_trained_without_it(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    run(plan_of(STUDY), tmp_path)
    _, executor, _ = run(plan_of(STUDY), tmp_path)
    assert executor.names == []
    assert plan_caches(plan_of(STUDY), Ledger(tmp_path), tmp_path) == []
    gentler = make_study_text("{method: asha, metric: reward/accuracy, grace: 0.5}")
    _, executor, _ = run(plan_of(gentler), tmp_path)
    assert executor.names == [LOSER]  # another rule looks at it anew
    outcome, executor, _ = run(plan_of(STUDY.replace("early_stopping", "# early")), tmp_path)
    assert executor.names == [LOSER]
    assert not outcome.summary.missing


def test_the_inline_executor_refuses_it_in_one_line(
    write_study: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_study(STUDY)
    told = CliRunner().invoke(
        cli, ["run", str(path), "--executor", "inline", "--workdir", str(tmp_path / "w")]
    )
    assert "early_stopping: compares running trainings" in str(told.exception)
    assert not (tmp_path / "w").exists()
