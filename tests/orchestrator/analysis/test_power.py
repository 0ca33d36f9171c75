import math
from dataclasses import replace

import pytest
from scipy import stats

from orchestrator.analysis import contrast, detectable_difference, seeds_needed

# Four cells of two seeds without item outcomes: V is the seeds' alone.
SEEDS = contrast(
    [[[10], [12]], [[13], [17]], [[9], [9]], [[8], [12]]], [-1, 1, 0, 0], blocked=False
)


def test_seeds_needed_by_hand():
    # s² = 2, 8, 0, 8: pooled 4.5 with 4; K = 1: T = 4.5·2 = 9, R = I = 0; V(k) = 9/k, 4(k−1) df
    assert SEEDS.v_seed == pytest.approx(4.5)

    def reach(k):
        df = 4 * (k - 1)
        return (stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * math.sqrt(9 / k)

    wanted = next(k for k in range(2, 100) if reach(k) <= 4)
    found = seeds_needed(SEEDS, -4)
    assert found.likely == wanted
    assert found.low < found.likely < found.high
    assert not found.items_forbid
    assert found.text == f"about {wanted} seeds ({found.low} to {found.high})"
    assert detectable_difference(SEEDS, 7) == pytest.approx(reach(7))


def test_the_range_is_that_of_the_seed_variance():
    low = 4 / stats.chi2.ppf(0.9, 4)
    smaller = replace(SEEDS, v_seed=SEEDS.v_seed * low)
    assert seeds_needed(SEEDS, 4).low == seeds_needed(smaller, 4).likely


def test_more_comparisons_and_smaller_targets_need_more_seeds():
    assert seeds_needed(SEEDS, 4, family=5).likely > seeds_needed(SEEDS, 4).likely
    assert seeds_needed(SEEDS, 2).likely > seeds_needed(SEEDS, 4).likely
    assert seeds_needed(SEEDS, 4, power=0.5).likely < seeds_needed(SEEDS, 4).likely
    assert seeds_needed(SEEDS, 0.01).text == "more than 1000 seeds"


def test_items_and_residual_are_counted_once():
    found = replace(
        SEEDS, v_seed=0.5, v_item=0.3, v_res=0.2, units=51, pooled=4, blocked=True, seeds=2.0
    )
    # T = 0.6, R = 0.4, I = 0.1. At k = 10: V = 0.2, V_seed = 0.1, V_item = 0.14, d_s = 3·9
    df = 0.2**2 / (0.1**2 / 27 + 0.14**2 / 50)
    reach = (stats.t.ppf(1 - 0.05 / 6, df) + stats.t.ppf(0.8, df)) * math.sqrt(0.2)
    assert detectable_difference(found, 10, family=3) == pytest.approx(reach)


def test_where_items_forbid_it_no_number_of_seeds_suffices():
    found = replace(SEEDS, v_seed=0.5, v_item=1.0, v_res=0.0, units=500)
    # I = 1: about 1.96 + 0.84 = 2.8 standard errors with endless seeds
    assert seeds_needed(found, 2.7).text == "no number of seeds suffices; more items"
    assert not seeds_needed(found, 2.9).items_forbid


def test_what_cannot_be_answered_is_refused():
    one_seed = contrast([[[1, 0]], [[0, 0]]], [1, -1], blocked=False)
    for ask in (lambda: seeds_needed(one_seed, 1), lambda: detectable_difference(one_seed, 3)):
        with pytest.raises(ValueError, match="no seed variance"):
            ask()
    for wrong in (
        {"target": 0},
        {"target": math.nan},
        {"family": 0},
        {"max_seeds": 1},
        {"power": 1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            seeds_needed(SEEDS, **{"target": 1, **wrong})
    with pytest.raises(ValueError, match="fewer than two"):
        detectable_difference(SEEDS, 1)
