"""Every arm's search: the same draws, judged on `select`, and its winner's seeds on `report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chip_core.config.benchmark import BenchmarksConfig
from chip_core.utils.errors import UserError
from orchestrator.executors.base import Job
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.snapshot import iter_plan_snapshots
from orchestrator.run import run_study
from orchestrator.runner.jobs import trial_folder
from orchestrator.state.compare import compare_plans
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import TunedPlan, plan_searches, resolve_search
from orchestrator.study.model import Study
from orchestrator.study.search_space import Range, SelectMetric, Tune, Values

from ..fakes import FakeExecutor, FakeTracker, run_with_fakes
from ..tuned_study import STUDY, MetricOfJob, run_missing_trials

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")

#: The learning rate that each objective's figure is best at; the figure is the distance from it.
BEST = {"dpo": 1e-5, "chip": 1e-4}


def compute_distance(job: Job) -> float | None:
    return abs(job.config.optimizer.lr - BEST[job.config.objective.preset]) * 1e5


def make_tuned_plan(plan_of: PlanOf, workdir: Path, text: str = STUDY, **changes: Any) -> TunedPlan:
    plan = resolve_search(plan_of(text, **changes), Ledger(workdir))
    assert isinstance(plan, TunedPlan)
    return plan


def list_chosen_rates(plan: Plan) -> dict[str, Any]:
    return {
        search.arm.name: None if search.chosen is None else search.chosen.values["optimizer.lr"]
        for search in plan_searches(plan)
    }


def test_every_arm_has_the_same_draws_and_its_seeds_wait(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = make_tuned_plan(plan_of, tmp_path)
    draws = [[trial.values for trial in search.draws] for search in plan.searches]
    assert draws == [[{"optimizer.lr": rate} for rate in (1e-5, 5e-5, 1e-4)]] * 2
    # draw by draw over the arms, so that a search cut short is as far in each
    assert [trial.name for trial in plan.trials] == [
        "base",
        "dpo: search 1 of 3 (optimizer.lr=1e-5)",
        "chip: search 1 of 3 (optimizer.lr=1e-5)",
        "dpo: search 2 of 3 (optimizer.lr=5e-5)",
        "chip: search 2 of 3 (optimizer.lr=5e-5)",
        "dpo: search 3 of 3 (optimizer.lr=0.0001)",
        "chip: search 3 of 3 (optimizer.lr=0.0001)",
    ]
    held = [trial.blocked for arm in plan.arms for trial in arm.trials]
    assert len(held) == 4
    assert {one.reason for one in held if one is not None} == {"its search has not ended"}


def test_a_search_trial_is_an_ordinary_trial_that_is_asked_select_alone(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    first = make_tuned_plan(plan_of, tmp_path).searches[0].draws[0]
    assert first.seed == 1000
    assert list(first.evaluations) == ["select/shapes"]
    assert first.config.benchmarks.report == ()
    text = STUDY[: STUDY.index("tune:")].replace("study: tuned", "study: by_hand")
    plain = plan_of(text, seeds=[1000], overrides={"optimizer.lr": 1e-5})
    same = plain.arms[0].trials[-1]  # --seeds adds to the file's
    assert same.fingerprint == first.fingerprint  # the same training: made once for both
    assert same.evaluations["select/shapes"] == first.evaluations["select/shapes"]
    base = make_tuned_plan(plan_of, tmp_path).base
    assert list(base.evaluations) == ["report/shapes"]


def test_each_arm_runs_its_seeds_with_what_it_chose(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    outcome, executor, tracker = run_with_fakes(plan_of(STUDY), tmp_path)
    assert outcome.executed == 1 + 6 + 4
    assert [name for name in executor.names if "search" not in name] == [
        "base", "dpo, seed 0", "chip, seed 0", "dpo, seed 1", "chip, seed 1",
    ]  # fmt: skip
    assert executor.names.index("dpo, seed 0") == 7  # after every search
    rates = {job.name: job.config.optimizer.lr for job in executor.jobs[7:]}
    assert rates == {"dpo, seed 0": 1e-5, "dpo, seed 1": 1e-5, "chip, seed 0": 1e-4,
                     "chip, seed 1": 1e-4}  # fmt: skip
    asked = {(job.name[:4], len(job.config.benchmarks.select)) for job in executor.jobs[7:]}
    assert asked == {("dpo,", 0), ("chip", 0)}
    assert all(not job.config.benchmarks.report for job in executor.jobs[1:7])
    assert not outcome.failed
    assert outcome.summary.rows[1].figures["shapes/chair_i"].n == 2  # seeds, and no search
    assert list(outcome.summary.metrics) == [
        "shapes/chair_i", "shapes/chair_s", "shapes/hal", "shapes/cover",
    ]  # fmt: skip
    assert [dict(view.arm.tuned) for view in tracker.arms] == [
        {"optimizer.lr": "1e-5"}, {"optimizer.lr": "0.0001"},
    ]  # fmt: skip


def test_a_rerun_finds_the_search_and_more_seeds_do_not_search_again(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    run_missing_trials(plan_of(STUDY), tmp_path)
    _, executor, _ = run_with_fakes(plan_of(STUDY), tmp_path)
    assert executor.names == []
    _, executor, _ = run_with_fakes(plan_of(STUDY, seeds=[0, 1, 2]), tmp_path)
    assert executor.names == ["dpo, seed 2", "chip, seed 2"]
    more = STUDY.replace("1e-4]", "1e-4, 2e-4]")
    assert list_chosen_rates(make_tuned_plan(plan_of, tmp_path, more)) == {
        "dpo": None,
        "chip": None,
    }
    _, executor, _ = run_with_fakes(plan_of(more), tmp_path)
    assert executor.names == [
        f"{arm}: search 4 of 4 (optimizer.lr=0.0002)" for arm in ("dpo", "chip")
    ]


def test_the_kept_plan_has_the_searches_and_what_was_chosen(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    _, executor, _ = run_with_fakes(plan_of(STUDY), tmp_path)
    (kept,) = iter_plan_snapshots(tmp_path)
    arms = [wanted.arm for wanted in kept.trials.values()]
    assert len(arms) == len(executor.names) == 1 + 6 + 4
    assert sum("search" in arm for arm in arms) == 6
    assert all(mark in kept.trials for mark, _ in Ledger(tmp_path).items())


def test_studies_differ_by_what_was_chosen(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    plain = plan_of(STUDY[: STUDY.index("tune:")].replace("study: tuned", "study: by_hand"))
    ledger = Ledger(tmp_path)
    before = compare_plans(resolve_search(plan_of(STUDY), ledger), plain, ledger)
    assert before["same"] == []  # what is still to be chosen is the same as nothing
    run_with_fakes(plan_of(STUDY), tmp_path)
    after = compare_plans(resolve_search(plan_of(STUDY), Ledger(tmp_path)), plain, Ledger(tmp_path))
    keys = {entry["arms"][0]: entry["keys"] for entry in after["changed"]}
    rate = plain.base.config.optimizer.lr
    assert keys == {
        "dpo": {"optimizer.lr": [1e-5, rate]},
        "chip": {"optimizer.lr": [1e-4, rate]},
    }


def test_of_equal_draws_the_first_counts_and_undefined_ones_do_not(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(lambda job: None if job.config.optimizer.lr == 1e-5 else 7.0)
    assert list_chosen_rates(run_missing_trials(plan_of(STUDY), tmp_path)) == {
        "dpo": 5e-5,
        "chip": 5e-5,
    }


def test_maximize_and_minimize_compare_the_other_way_round(plan_of: PlanOf, tmp_path: Path) -> None:
    up = SelectMetric(benchmark="shapes", metric="cover", goal="maximize")
    down = SelectMetric(benchmark="shapes", metric="chair_i", goal="minimize")
    assert (up.is_better(2, 1), up.is_better(1, 1), up.is_better(1, 2)) == (True, False, False)
    assert (down.is_better(1, 2), down.is_better(1, 1), down.is_better(2, 1)) == (
        True,
        False,
        False,
    )
    text = STUDY.replace("select/shapes/chair_i\n  goal: minimize", "select/shapes/cover")
    assert make_tuned_plan(plan_of, tmp_path, text).study.tune.metric == up  # type: ignore[union-attr]


def test_a_failed_draw_does_not_count_and_is_tried_again(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    best = "dpo: search 1 of 3 (optimizer.lr=1e-5)"
    executor = FakeExecutor(failures={best: "the loss is nan"})
    outcome, _, _ = run_with_fakes(plan_of(STUDY), tmp_path, executor)
    assert outcome.failed == {best: "the loss is nan"}
    assert list_chosen_rates(make_tuned_plan(plan_of, tmp_path)) == {"dpo": 5e-5, "chip": 1e-4}
    _, executor, _ = run_with_fakes(plan_of(STUDY), tmp_path)
    # it is the better one, so that the arm's seeds run anew with it
    assert executor.names == [best, "dpo, seed 0", "dpo, seed 1"]
    assert list_chosen_rates(make_tuned_plan(plan_of, tmp_path)) == {"dpo": 1e-5, "chip": 1e-4}


def test_an_arm_whose_search_came_to_nothing_has_failed(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(lambda job: None if job.config.optimizer.lr == 1e-5 else 7.0)
    lost = {
        f"chip: search {n} of 3 (optimizer.lr={rate})": "the loss is nan at step 3"
        for n, rate in ((2, "5e-5"), (3, "0.0001"))
    }
    outcome, executor, tracker = run_with_fakes(
        plan_of(STUDY), tmp_path, FakeExecutor(failures=lost)
    )
    reason = (
        "its search has no result: of 3 trials 2 failed (the loss is nan at step 3) and 1 had "
        "no defined figure"
    )
    assert outcome.failed == {**lost, "chip": reason}
    assert not any(name.startswith("chip, seed") for name in executor.names)
    assert outcome.summary.missing == ["chip, seed 0 (failed)", "chip, seed 1 (failed)"]
    assert {view.arm.name: view.status for view in tracker.arms} == {
        "dpo": "FINISHED",
        "chip": "FAILED",
    }
    # undefined alone is a failure of the arm, too, though no trial failed
    set_trial_metric(lambda job: None)
    outcome, _, _ = run_with_fakes(plan_of(STUDY), tmp_path / "other")
    assert set(outcome.failed) == {"dpo", "chip"}


def test_a_search_cut_short_chooses_nothing(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    last = "chip: search 3 of 3 (optimizer.lr=0.0001)"
    outcome, _, _ = run_with_fakes(plan_of(STUDY), tmp_path, FakeExecutor(interrupt_before=last))
    assert outcome.interrupted
    assert list_chosen_rates(make_tuned_plan(plan_of, tmp_path)) == {"dpo": 1e-5, "chip": None}
    _, executor, _ = run_with_fakes(plan_of(STUDY), tmp_path)
    assert executor.names == [last, "dpo, seed 0", "chip, seed 0", "dpo, seed 1", "chip, seed 1"]


def test_draws_that_cannot_differ_are_one_trial(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    text = STUDY.replace("optimizer.lr: [1e-5, 5e-5, 1e-4]", "objective.weights.segment: [1, 2, 3]")
    plan = make_tuned_plan(plan_of, tmp_path, text)
    assert [len(search.trials) for search in plan.searches] == [1, 3]
    assert [trial.number for trial in plan.searches[0].trials] == [1]
    set_trial_metric(lambda job: -job.config.objective.weights.segment)
    done = run_missing_trials(plan_of(text), tmp_path)
    assert len(done.trials) == 1 + 4 + 4
    searches = plan_searches(done)
    values = [search.chosen.values for search in searches if search.chosen is not None]
    assert values == [{"objective.weights.segment": 1}, {"objective.weights.segment": 3}]


def test_untuned_figures_of_a_held_trial_are_not_taken_for_its_own(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    text = STUDY[: STUDY.index("tune:")]
    run_missing_trials(plan_of(text), tmp_path)
    plan = make_tuned_plan(plan_of, tmp_path)
    assert not any(
        Ledger(tmp_path)[trial.fingerprint].attempts for arm in plan.arms for trial in arm.trials
    )


def make_draws(**given: Any) -> tuple[dict[str, Any], ...]:
    metric = SelectMetric(benchmark="shapes", metric="hal", goal="minimize")
    return Tune(**{"metric": metric, "seed": 0, **given}).make_draws()


def test_draws_from_ranges_are_seeded_and_more_are_the_same_and_more() -> None:
    keys = {
        "optimizer.lr": Range(low=1e-6, high=1e-4, log=True),
        "optimizer.warmup": Range(low=0.0, high=0.2),
        "lora.rank": Range(low=4, high=8),
        "optimizer.schedule": Values(options=("cosine", "constant")),
    }
    few, many = make_draws(keys=keys, trials=20), make_draws(keys=keys, trials=300)
    assert many[:20] == few
    assert make_draws(keys=keys, trials=20, seed=1) != few
    alone = make_draws(keys={"optimizer.lr": keys["optimizer.lr"]}, trials=20)
    assert [one["optimizer.lr"] for one in alone] == [one["optimizer.lr"] for one in few]
    rates = [one["optimizer.lr"] for one in many]
    assert all(1e-6 <= rate <= 1e-4 for rate in rates)
    # a logarithmic range has half of its draws in its lower decade: 150 of 300, deviation 8.7
    assert abs(sum(rate < 1e-5 for rate in rates) - 150) < 4 * 8.7
    assert all(float(f"{rate:.4g}") == rate for rate in rates)
    # a linear one has half of them in its lower half
    assert abs(sum(one["optimizer.warmup"] < 0.1 for one in many) - 150) < 4 * 8.7
    assert {one["lora.rank"] for one in many} == {4, 5, 6, 7, 8}
    assert all(type(one["lora.rank"]) is int for one in many)


def test_a_part_of_a_grid_is_a_seeded_subset_without_repeats() -> None:
    keys = {"a": Values(options=(1, 2, 3)), "b": Values(options=(True, False))}
    whole = make_draws(keys=keys, trials=6)
    assert whole == tuple({"a": a, "b": b} for a in (1, 2, 3) for b in (True, False))
    three, four = make_draws(keys=keys, trials=3), make_draws(keys=keys, trials=4)
    assert four[:3] == three
    assert all(one in whole for one in four)
    assert len({str(one) for one in four}) == 4


def test_a_search_trial_cannot_be_made_to_be_asked_what_is_quoted(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    trial = make_tuned_plan(plan_of, tmp_path).searches[0].draws[0]
    quoted = BenchmarksConfig.model_validate({"report": ["shapes"]})
    config = trial.config.model_copy(update={"benchmarks": quoted})
    for changes in ({"config": config}, {"evaluations": {"report/shapes": "abc"}}):
        with pytest.raises(
            UserError, match="may only be scored on the benchmarks under `select`"
        ) as caught:
            replace(trial, **changes)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_figures_of_report_do_not_move_a_choice(
    plan_of: PlanOf, tmp_path: Path, set_trial_metric: Callable[[MetricOfJob], None]
) -> None:
    set_trial_metric(compute_distance)
    text = STUDY[: STUDY.index("tune:")].replace("study: tuned", "study: by_hand")
    # the very trainings of the search, scored on both sides, with `report` the other way round
    for rate in (1e-5, 5e-5, 1e-4):
        run_missing_trials(plan_of(text, seeds=[1000], overrides={"optimizer.lr": rate}), tmp_path)
    ledger = Ledger(tmp_path)
    for _, record in ledger.items():
        for scored in record.evaluations.values():
            metrics = scored.evaluation.metrics
            for name in list(metrics):
                if not name.startswith("select/"):
                    metrics["select/shapes/chair_i"] = -metrics[name]
    plan = resolve_search(plan_of(STUDY), ledger)
    assert list_chosen_rates(plan) == {"dpo": 1e-5, "chip": 1e-4}


def test_names_that_a_search_may_be_judged_by_begin_with_select() -> None:
    metric = SelectMetric(benchmark="shapes", metric="chair_i", goal="minimize")
    assert (metric.name, metric.key) == ("select/shapes/chair_i", "select/shapes")


def test_what_really_lies_on_disk_after_a_search(
    load: Callable[..., Study], tmp_path: Path
) -> None:
    text = (
        STUDY.replace("[dpo, chip]", "[dpo]")
        .replace("seeds: [0, 1]", "seeds: [0]")
        .replace("[1e-5, 5e-5, 1e-4]", "[1e-5, 1e-3]")
        .replace("[shapes]", "[{name: shapes, limit: 3}]")
    )
    short = {"training.max_steps": 1, "training.batch_size": 2, "data.limit": 4}
    outcome = run_study(
        make_plan(load(text, overrides=short)),
        workdir=tmp_path / "w",
        executor=InlineExecutor,
        tracker=FakeTracker(),
        console=Console(quiet=True),
    )
    assert not outcome.failed
    plan = outcome.summary.plan
    folders = {
        trial.name: sorted(
            file.name
            for file in (trial_folder(tmp_path / "w", trial) / "attempt-1" / "responses").iterdir()
        )
        for trial in plan.trials
    }
    assert folders == {
        "base": ["report-shapes.jsonl"],
        "dpo: search 1 of 2 (optimizer.lr=1e-5)": ["select-shapes.jsonl"],
        "dpo: search 2 of 2 (optimizer.lr=0.001)": ["select-shapes.jsonl"],
        "dpo, seed 0": ["report-shapes.jsonl"],
    }
    (search,) = plan_searches(plan)
    assert search.chosen is not None
    assert search.figures[search.chosen.fingerprint] == min(search.figures.values())
