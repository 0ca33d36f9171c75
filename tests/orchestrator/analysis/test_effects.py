import numpy as np
import pytest

from orchestrator.analysis import (
    MetricResults,
    StudyArm,
    StudyResults,
    Verdict,
    compare_with_baseline,
    contrast,
    holm,
    interactions,
    main_effects,
    report_pool,
)

RNG = np.random.default_rng(0)
FRAME = {"objective": "dpo", "encoder": "frozen"}


def make_arm(objective, encoder, seeds=(0, 1, 2), **more):
    cell = {"objective": objective, "encoder": encoder}
    return StudyArm(name=f"{objective}, {encoder}", cells=(cell,), seeds=seeds, **more)


GRID = tuple(make_arm(o, e) for o in ("dpo", "chip") for e in ("frozen", "trained"))


def make_results(*rows, goal="maximize", **more):
    return MetricResults(goal=goal, figures=tuple(np.array(row, float) for row in rows), **more)


def make_study(metric, arms=GRID, baseline=None, **more):
    return StudyResults(arms=arms, baseline=baseline or FRAME, metrics={"m": metric}, **more)


def spread_around(mean, spread=0.1):
    return [mean - spread, mean, mean + spread]


def spread_reordered(mean, spread=0.1):
    """Return the same scatter, in another order of the seeds."""
    return [mean, mean + spread, mean - spread]


def test_arms_against_the_baseline():
    metric = make_results(
        spread_around(50), spread_reordered(53), spread_reordered(47), spread_around(50.01)
    )
    found = compare_with_baseline(make_study(metric), "m")
    assert [one.name for one in found] == ["dpo, trained", "chip, frozen", "chip, trained"]
    assert found[0].changes == {"encoder": ("frozen", "trained")}
    assert found[2].changes == {"objective": ("dpo", "chip"), "encoder": ("frozen", "trained")}
    assert [one.verdict for one in found] == [
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.TOO_FEW_SEEDS,  # without a δ there is no "no clear difference"
    ]
    alone = contrast(metric.values, [-1, 1, 0, 0], blocked=True)
    assert found[0].contrast == alone
    assert found[0].p_adjusted == pytest.approx(3 * alone.p)  # the smallest of three
    assert [one.p_adjusted for one in found] == holm([one.contrast.p for one in found])


def test_goal_turns_better_into_worse():
    rows = (spread_around(50), spread_reordered(53), spread_reordered(47), spread_around(50))
    found = compare_with_baseline(make_study(make_results(*rows, goal="minimize")), "m")
    assert [one.verdict for one in found[:2]] == [Verdict.WORSE, Verdict.BETTER]


def test_verdicts_with_a_smallest_difference():
    rows = (spread_around(50), spread_reordered(53), spread_reordered(47), spread_around(50.01))
    wide = compare_with_baseline(make_study(make_results(*rows, smallest_difference=5.0)), "m")
    assert [one.verdict for one in wide] == [
        Verdict.BETTER_BELOW_DELTA,
        Verdict.WORSE_BELOW_DELTA,
        Verdict.NO_CLEAR_DIFFERENCE,
    ]
    slim = compare_with_baseline(make_study(make_results(*rows, smallest_difference=0.05)), "m")
    assert [one.verdict for one in slim] == [
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.TOO_FEW_SEEDS,
    ]
    assert all(one.p_equivalence_adjusted is not None for one in slim)


def test_too_few_items_where_seeds_agree():
    # Every seed answers alike, cells differ in a few items.
    answers = [RNG.integers(0, 2, 12) for _ in GRID]
    metric = MetricResults(
        goal="maximize", numerators=tuple(np.tile(row, (3, 1)) for row in answers), scale=100
    )
    found = compare_with_baseline(make_study(metric), "m")
    assert {one.verdict for one in found} == {Verdict.TOO_FEW_ITEMS}


def test_one_seed_everywhere_has_an_interval_and_no_better_or_worse():
    arms = tuple(make_arm(o, e, seeds=(0,)) for o in ("dpo", "chip") for e in ("frozen", "trained"))
    right = [np.zeros((1, 40)), np.ones((1, 40)), RNG.integers(0, 2, (1, 40)), np.ones((1, 40))]
    metric = MetricResults(goal="maximize", numerators=tuple(right), smallest_difference=0.01)
    found = compare_with_baseline(make_study(metric, arms), "m")
    assert {one.verdict for one in found} == {Verdict.ITEMS_ONLY}
    assert all(one.p_adjusted is None for one in found)
    assert found[1].contrast.interval is not None
    assert (
        compare_with_baseline(make_study(make_results([1], [2], [3], [4]), arms), "m")[0].verdict
        is Verdict.NO_TEST
    )


def test_no_test_where_nothing_varies():
    found = compare_with_baseline(make_study(make_results([5] * 3, [6] * 3, [5] * 3, [5] * 3)), "m")
    assert {one.verdict for one in found} == {Verdict.NO_TEST}


def test_a_missing_p_is_not_counted_in_the_family():
    # Of the two main effects one is not estimable: the family is the other.
    arms = (*GRID[:2], make_arm("chip", "other"))
    found = main_effects(
        make_study(
            make_results(spread_around(50), spread_reordered(53), spread_reordered(47)), arms
        ),
        "m",
    )
    assert [one.verdict is Verdict.NOT_ESTIMABLE for one in found] == [True, False, True]
    assert found[1].p_adjusted == found[1].contrast.p


def test_exploratory_corrects_by_the_false_discovery_rate():
    metric = make_results(
        spread_around(50, 1), spread_reordered(53, 1), spread_reordered(47, 1), spread_around(52, 1)
    )
    strict = compare_with_baseline(make_study(metric), "m")
    loose = compare_with_baseline(make_study(metric, exploratory=True), "m")
    assert [one.p_adjusted for one in loose] != [one.p_adjusted for one in strict]
    pairs = zip(loose, strict, strict=True)
    assert all(one.p_adjusted <= other.p_adjusted for one, other in pairs)


def test_main_effects_and_interaction_of_a_grid():
    metric = make_results(
        spread_around(50), spread_reordered(52), spread_reordered(55), spread_around(60)
    )
    results = make_study(metric)
    objective, encoder = main_effects(results, "m")
    assert objective.name == "objective: dpo → chip"
    assert objective.weights == (-0.5, -0.5, 0.5, 0.5)
    assert (objective.used, objective.combinations) == (2, 2)
    assert objective.contrast.estimate == pytest.approx((55 + 60 - 50 - 52) / 2)
    assert encoder.weights == (-0.5, 0.5, -0.5, 0.5)
    assert objective.contrast == contrast(metric.values, objective.weights, blocked=True)
    (both,) = interactions(results, "m")
    assert both.name == "objective: dpo → chip × encoder: frozen → trained"
    assert both.weights == (1.0, -1.0, -1.0, 1.0)
    assert both.contrast.estimate == pytest.approx((60 - 55) - (52 - 50))
    assert both.verdict is Verdict.BETTER


def test_effects_use_the_combinations_that_exist():
    three = (*GRID[:3],)
    results = make_study(
        make_results(spread_around(50), spread_reordered(52), spread_reordered(55)), three
    )
    objective, encoder = main_effects(results, "m")
    assert objective.weights == (-1.0, 0.0, 1.0)
    assert (objective.used, objective.combinations) == (1, 2)
    assert encoder.weights == (-1.0, 1.0, 0.0)
    (both,) = interactions(results, "m")
    assert (both.used, both.combinations) == (0, 1)
    assert both.verdict is Verdict.NOT_ESTIMABLE
    assert both.contrast is None
    assert both.weights == ()


def test_an_effect_without_a_single_pair_is_not_estimable():
    corners = (GRID[0], GRID[3])
    found = main_effects(
        make_study(make_results(spread_around(50), spread_reordered(52)), corners), "m"
    )
    assert [one.verdict for one in found] == [Verdict.NOT_ESTIMABLE] * 2


def test_cells_that_are_one_trial_are_no_pair():
    def cell(objective, weight):
        return {"objective": objective, "weight": weight}

    arms = (
        StudyArm(name="dpo", cells=(cell("dpo", "1"), cell("dpo", "2")), seeds=(0, 1, 2)),
        StudyArm(name="chip, 1", cells=(cell("chip", "1"),), seeds=(0, 1, 2)),
        StudyArm(name="chip, 2", cells=(cell("chip", "2"),), seeds=(0, 1, 2)),
    )
    metric = make_results(spread_around(50), spread_reordered(52), spread_reordered(56))
    results = make_study(metric, arms, baseline=cell("dpo", "1"))
    objective, weight = main_effects(results, "m")
    assert objective.weights == (-1.0, 0.5, 0.5)
    assert weight.weights == (0.0, -1.0, 1.0)  # under dpo it can have no effect
    assert (weight.used, weight.combinations) == (1, 2)
    assert interactions(results, "m")[0].verdict is Verdict.NOT_ESTIMABLE
    assert compare_with_baseline(results, "m")[1].changes == {"objective": ("dpo", "chip")}


def test_a_factor_with_three_levels_is_compared_level_by_level():
    arms = tuple(
        StudyArm(name=level, cells=({"t": level},), seeds=(0, 1)) for level in ("500", "100", "900")
    )
    results = make_study(make_results([1, 2], [2, 2], [3, 5]), arms, baseline={"t": "500"})
    assert [one.changes["t"] for one in main_effects(results, "m")] == [
        ("500", "100"),
        ("500", "900"),
    ]
    assert interactions(results, "m") == ()


def test_seeds_that_are_not_the_same_are_not_blocked():
    rows = (spread_around(50), spread_reordered(53), spread_reordered(47), spread_around(50))
    other = (*GRID[:3], make_arm("chip", "trained", seeds=(0, 1, 3)))
    assert compare_with_baseline(make_study(make_results(*rows)), "m")[0].contrast.blocked
    assert not compare_with_baseline(make_study(make_results(*rows), other), "m")[
        0
    ].contrast.blocked
    plain = make_study(make_results(*rows), common_random_numbers=False)
    assert not compare_with_baseline(plain, "m")[0].contrast.blocked


def test_the_reports_pool_is_used():
    arms = (*GRID, make_arm("other", "frozen"), make_arm("third", "frozen", collapsed=True))
    rows = (
        spread_around(50),
        spread_reordered(52),
        spread_reordered(47),
        spread_around(50),
        spread_around(5, 3),
        spread_reordered(50, 40),
    )
    metric = make_results(*rows)
    found = compare_with_baseline(make_study(metric, arms), "m")[0]
    mask = report_pool(metric.values, found.weights, collapsed=[False] * 5 + [True])
    assert mask.tolist() == [True] * 4 + [False] * 2
    assert found.contrast == contrast(metric.values, found.weights, blocked=True, pool=mask)


def test_metrics_of_items_are_in_the_shown_unit():
    num, den = np.array([[1.0, 2.0]]), np.array([[4.0, 4.0]])
    metric = MetricResults(goal="minimize", numerators=(num,), denominators=(den,), scale=100)
    # R = 3/8; y = 37.5 + 100·(num − 1.5)/4
    np.testing.assert_allclose(metric.values[0], [[25.0, 50.0]])


def test_results_that_do_not_fit_are_refused():
    rows = make_results(spread_around(1), spread_around(2), spread_around(3), spread_around(4))
    with pytest.raises(ValueError, match="not a cell of any arm"):
        make_study(rows, baseline={"objective": "kto", "encoder": "frozen"})
    with pytest.raises(ValueError, match="is in two arms"):
        make_study(rows, (*GRID[:3], GRID[0]))
    with pytest.raises(ValueError, match="ascending"):
        make_study(rows, (*GRID[:3], make_arm("chip", "trained", seeds=(1, 0, 2))))
    with pytest.raises(ValueError, match="do not fit"):
        make_study(make_results(spread_around(1), spread_around(2), spread_around(3), [4, 5]))
    with pytest.raises(ValueError, match="either item outcomes or figures"):
        make_study(MetricResults(goal="maximize"))
    with pytest.raises(ValueError, match="did you mean 'm'|choices: m"):
        compare_with_baseline(make_study(rows), "mm")


def test_a_placebo_is_a_family_of_its_own_and_changes_no_other_comparison():
    rows = [
        spread_around(50, 1),
        spread_reordered(53, 1),
        spread_reordered(47, 1),
        spread_around(52, 1),
    ]
    placebo = StudyArm(name="placebo", cells=(), seeds=(10, 11, 12), placebo=True)
    without = make_study(make_results(*rows))
    having = make_study(make_results(*rows, spread_reordered(50, 1)), (*GRID, placebo))
    *others, own = compare_with_baseline(having, "m")
    assert tuple(others) != () and not any(one.placebo for one in others)
    for one, other in zip(others, compare_with_baseline(without, "m"), strict=True):
        assert one.contrast == other.contrast and one.p_adjusted == other.p_adjusted
    assert own.placebo and own.changes == {} and own.p_adjusted == own.contrast.p
    assert own.contrast.estimate == pytest.approx(0.0)
    assert not own.contrast.blocked and others[0].contrast.blocked  # its seeds are not theirs
    for asked in (main_effects, interactions):
        pairs = zip(asked(having, "m"), asked(without, "m"), strict=True)
        assert all(one.contrast == other.contrast for one, other in pairs)
        assert all(one.p_adjusted == other.p_adjusted for one, other in pairs)
