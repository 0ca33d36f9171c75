"""Rates times work: hours, money, the time from start to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.cost import machines
from orchestrator.cost.budget import budget_amounts
from orchestrator.cost.estimate import Prices, estimate_workload
from orchestrator.cost.machines import server_gpus, slots_on_gpus, slots_on_machine
from orchestrator.cost.rates import ANY_KIND, Rates, RateSource
from orchestrator.cost.workload import Workload
from orchestrator.plan.plan import Plan

from .conftest import ADAPTERS, SERVED, SHORT, STUDY, make_rates, make_seconds

WorkOf = Callable[[Plan], Workload]
RATES = {"imports": 2, "model": 1, "row": 0.001, "setup": 3, "step": 0.5, "answer": 0.1,
         "score": 0.05}  # fmt: skip

#: Scoring 20 · 0.05, without a GPU.
SCORED = 1
#: Start 2 + 1 + 4,096 · 0.001, training 3 + 10 · 0.5, answers 20 · 0.1: what holds a place.
HELD = 7.096 + 8 + 2
TRIAL = HELD + SCORED
#: It is not trained, and no data are checked.
BASE_HELD = 2 + 1 + 2
BASE = BASE_HELD + SCORED


def test_a_study_without_passes(small_plan: Plan, make_workload: WorkOf) -> None:
    found = estimate_workload(make_workload(small_plan), make_rates(**RATES), at_once=2)
    assert not found.passes  # 12 trials of 160 samples read 4,096 samples less than once
    one = found.trials[small_plan.arms[0].trials[0].fingerprint]
    assert one.start.wall == pytest.approx(7.096)
    assert (one.train.wall, one.answer.wall, one.score.wall) == (8, 2, 1)
    assert found.trials[small_plan.base.fingerprint].total_time.wall == BASE
    assert found.total.total_time.cpu == pytest.approx(12 * TRIAL + BASE)
    # Two places: the untrained model and six trials, beside six trials. Scoring holds none of
    # them, and only the last one's is waited for.
    assert found.wall == pytest.approx(BASE_HELD + 6 * HELD + SCORED)
    assert found.total.sources == {"a test"}


def test_rounds_are_sampled_and_trained_each(
    plan_of: Callable[..., Plan], make_workload: WorkOf
) -> None:
    rounds = {"pairs.rounds": 2, "pairs.prompts": 100, "pairs.answers": 4}
    plan = plan_of(STUDY, overrides={**SHORT, **rounds, "training.max_steps": 60})
    found = estimate_workload(make_workload(plan), make_rates(**RATES), at_once=2)
    assert not found.passes  # 60 steps would pay for them, but each trial's pairs are its own
    one = found.trials[plan.arms[0].trials[0].fingerprint]
    assert one.start.wall == 2 + 1  # no row of the data is checked
    # A prompt gives one pair at most: 6 batches of 16 a round.
    assert one.train.wall == pytest.approx(2 * (100 * 4 * 0.1 + 3 + 6 * 0.5))
    rates = Rates(sources=[RateSource(name="a", rates={("step", ANY_KIND): make_seconds(1)})])
    unknown = estimate_workload(make_workload(plan), rates, at_once=2).total.unknown
    assert "seconds of an answer (pairs of dpo, 1e-5)" in unknown


def test_one_process_imports_once(small_plan: Plan, make_workload: WorkOf) -> None:
    found = estimate_workload(
        make_workload(small_plan), make_rates(**RATES), at_once=2, executor="inline"
    )
    assert found.at_once == 1
    assert found.wall == pytest.approx(12 * TRIAL + BASE - 12 * RATES["imports"])


def test_passes_that_pay_are_made_first(
    plan_of: Callable[..., Plan], make_workload: WorkOf
) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, "training.max_steps": 60})
    found = estimate_workload(make_workload(plan), make_rates(**RATES, sample=0.01), at_once=2)
    # 12 · 960 and 6 · 960 samples are read of 4,096: both passes pay, and are made together, in
    # two parts that each load the model and check the data.
    (cost,) = found.passes.values()
    assert cost.total_time.wall == pytest.approx(2 * 7.096 + 40.96)
    trial = HELD + 50 * 0.5
    assert found.wall == pytest.approx(cost.total_time.wall / 2 + BASE_HELD + 6 * trial + SCORED)
    assert found.total.passes.wall == pytest.approx(cost.total_time.wall)


def test_what_is_not_known_is_named_and_in_no_sum(small_plan: Plan, make_workload: WorkOf) -> None:
    rates = {name: rate for name, rate in RATES.items() if name != "step"}
    found = estimate_workload(make_workload(small_plan), make_rates(**rates), at_once=2)
    assert found.wall is None
    assert found.total.price(Prices(cpu_hour=1.0)) is None
    assert "seconds of a step (dpo, 1e-5)" in found.total.unknown
    assert found.total.train.wall == 12 * 3
    assert not found.trials[small_plan.base.fingerprint].unknown


def test_a_place_that_is_not_known_leaves_the_end_unknown(
    small_plan: Plan, make_workload: WorkOf
) -> None:
    found = estimate_workload(make_workload(small_plan), make_rates(**RATES), at_once=None)
    assert found.wall is None
    assert not found.total.unknown


def test_gpu_time_is_what_is_held(plan_of: Callable[..., Plan], make_workload: WorkOf) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, "engine.gpus_per_worker": 0.5})
    half_computed = {name: make_seconds(rate, rate / 2) for name, rate in RATES.items()}
    found = estimate_workload(make_workload(plan), make_rates(**half_computed), at_once=4)
    held, whole = 12 * HELD + BASE_HELD, 12 * TRIAL + BASE
    assert found.total.gpu == pytest.approx(held / 2)
    price = found.total.price(Prices(gpu_hour=2.0, cpu_hour=0.1))
    assert price == pytest.approx((held / 2 * 2.0 + whole / 2 * 0.1) / 3600)
    assert found.total.price(Prices(cpu_hour=0.1)) is None  # what the GPUs cost is not known


def test_a_studys_server_holds_its_gpus_from_start_to_end(
    plan_of: Callable[..., Plan], make_workload: WorkOf
) -> None:
    on_gpu = {**SHORT, "engine.gpus_per_worker": 1}
    work = make_workload(plan_of(SERVED, overrides={**ADAPTERS, **on_gpu}))
    assert server_gpus(work.trials) == 2  # its tensor_parallel_size
    found = estimate_workload(work, make_rates(**RATES), at_once=2, server_gpus=2)
    wall = BASE_HELD + 6 * HELD + SCORED
    assert (found.wall, found.server and found.server.gpu) == pytest.approx((wall, 2 * wall))
    assert found.gpu == found.total.gpu == pytest.approx(12 * HELD + BASE_HELD + 2 * wall)
    price = Prices(gpu_hour=3.0)
    assert found.price(price) == pytest.approx(3 * found.total.gpu / 3600)

    # How long it runs is not known: what it costs neither, and what trials compute is.
    unknown = estimate_workload(work, make_rates(**RATES), at_once=None, server_gpus=2)
    assert (unknown.gpu, unknown.price(price)) == (None, None)
    assert unknown.total.gpu == pytest.approx(12 * HELD + BASE_HELD)
    taken = budget_amounts(unknown, price)
    assert (taken["gpu_hours"], taken["price"]) == (None, None)
    assert taken["cpu_hours"] == pytest.approx((12 * TRIAL + BASE) / 3600)


def test_a_server_that_nothing_asks_or_that_has_no_gpus_holds_none(
    plan_of: Callable[..., Plan], make_workload: WorkOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = {**SHORT, "engine.gpus_per_worker": 1}
    work = make_workload(plan_of(SERVED, overrides={**ADAPTERS, **on_gpu})).trials
    assert server_gpus([replace(each, answered=True) for each in work]) == 0
    assert server_gpus(make_workload(plan_of(SERVED, overrides={**ADAPTERS, **SHORT})).trials) == 0
    assert server_gpus(make_workload(plan_of(STUDY, overrides=on_gpu)).trials) == 0
    # Of four GPUs the trials have those that it leaves them.
    monkeypatch.setattr(machines, "gpu_count", lambda: 4)
    monkeypatch.setattr(machines, "cpu_count", lambda: 64)
    assert (slots_on_machine(work), slots_on_machine(work, 2), slots_on_machine(work, 4)) == (
        4,
        2,
        None,
    )
    assert (slots_on_gpus(work, 4), slots_on_gpus(work, 0)) == (4, None)


def test_workers_share_a_training(plan_of: Callable[..., Plan], make_workload: WorkOf) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, "engine.workers_per_trial": 2})
    found = estimate_workload(make_workload(plan), make_rates(**RATES), at_once=1)
    # Both start and make every step; answers are shared out.
    trial = 2 * (7.096 + 8) + 2
    assert found.total.total_time.cpu == pytest.approx(12 * (trial + SCORED) + BASE)
    assert found.wall == pytest.approx(12 * trial / 2 + BASE_HELD + SCORED)


def test_the_first_source_that_knows_is_believed(small_plan: Plan, make_workload: WorkOf) -> None:
    rates = make_rates(**RATES)
    kind = make_workload(small_plan).trials[1].training
    assert kind is not None
    own = RateSource(name="own", rates={("step", kind): make_seconds(7)})
    both = type(rates)(sources=[own, *rates.sources])
    assert both.find("step", kind) == (make_seconds(7), "own")
    assert both.find("setup", kind) == (make_seconds(3), "a test")


def test_what_ray_takes_is_once_a_run_and_once_a_trial(
    small_plan: Plan, make_workload: WorkOf
) -> None:
    work = make_workload(small_plan)
    without = estimate_workload(work, make_rates(**RATES), at_once=1)
    found = estimate_workload(work, make_rates(**RATES, session=20, dispatch=4), at_once=1)
    assert (without.ray, found.ray) == (False, True)
    assert without.wall is not None
    assert found.wall == pytest.approx(without.wall + 20 + 13 * 4)
    assert found.total.total_time.cpu == pytest.approx(without.total.total_time.cpu + 20 + 13 * 4)
    inline = estimate_workload(
        work, make_rates(**RATES, session=20, dispatch=4), at_once=1, executor="inline"
    )
    assert inline.ray is None
    assert inline.wall == pytest.approx(12 * TRIAL + BASE - 12 * RATES["imports"])


def test_answers_that_are_there_need_no_model(small_plan: Plan, make_workload: WorkOf) -> None:
    work = make_workload(small_plan)
    first = work.trials[0]
    answered = replace(work, trials=(replace(first, training=None, answered=True),))
    found = estimate_workload(answered, make_rates(score=0.05), at_once=1)
    assert not found.total.unknown  # neither imports nor a model nor answers are asked for
    assert found.total.total_time.wall == pytest.approx(SCORED)
    assert found.total.gpu == 0


def test_rows_that_planning_cannot_count(small_plan: Plan, make_workload: WorkOf) -> None:
    work = make_workload(small_plan)
    hidden = replace(work, trials=tuple(replace(each, rows=None) for each in work.trials))
    found = estimate_workload(hidden, make_rates(**RATES), at_once=1)
    assert "how many: steps (dpo, 1e-5)" in found.total.unknown
    told = RateSource(name="told", rates={}, sizes={("rows", ANY_KIND): 4096})
    rates = Rates(sources=[told, *make_rates(**RATES).sources])
    assert (
        estimate_workload(hidden, rates, at_once=1).total
        == estimate_workload(work, rates, at_once=1).total
    )
