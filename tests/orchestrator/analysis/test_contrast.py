import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis import contrast, pseudo_values, report_pool, seed_correlation


def make_rows(*ones, units=10):
    """Make binary values: row s has that many ones, then zeros."""
    return [[1] * count + [0] * (units - count) for count in ones]


# Seed means ·10: (0, 1, 2), (1, 1, 1), (1, 1, 1), (9, 1, 5), (1, 2, 1), (1, 1, 2)
LOUD = [
    make_rows(0, 1, 2),
    make_rows(1, 1, 1),
    make_rows(1, 1, 1),
    make_rows(9, 1, 5),
    make_rows(1, 2, 1),
    make_rows(1, 1, 2),
]


def test_the_guard_against_heterogeneity_fires_by_hand():
    found = contrast(LOUD, [-1, 0, 0, 1, 0, 0], blocked=True)
    # D̄_s = 0.9, 0, 0.3, mean 0.4: var (0.25 + 0.16 + 0.01)/2 = 0.21; V_own = 0.21/3 = 0.07
    # The four others, blocked: Σ = 0.0166667 − rows 0.0033333 − seeds 0.0016667 = 0.0116667,
    # /6 = 0.00194444; K = 2/3; F_.90(2, 6) = 3.4633: limit 0.0044894 < 0.07: the guard fires.
    assert stats.f.ppf(0.9, 2, 6) * 2 / 3 * 0.0116667 / 6 == pytest.approx(0.0044894, rel=1e-4)
    assert found.guard
    assert found.blocked
    assert found.v_seed == pytest.approx(0.07)
    # D̄_i: 1/3 six times, 2/3 three times, 0 once: Σ(·−0.4)² = 0.4; 0.4/9/10
    assert found.v_item == pytest.approx(0.4 / 90)
    # ΣD² = 12, −30·0.16 = 7.2; −10·0.42 (seeds) −3·0.4 (items) = 1.8; /(2·9·10·3)
    assert found.v_res == pytest.approx(1.8 / 540)
    variance = 0.07 + 0.4 / 90 - 1.8 / 540
    assert found.variance == pytest.approx(variance)
    df = variance**2 / (0.07**2 / 2 + (0.4 / 90) ** 2 / 9)
    assert found.df == pytest.approx(df)
    assert found.p == pytest.approx(2 * stats.t.sf(0.4 / math.sqrt(variance), df))
    assert found.seed_share == pytest.approx((variance - 0.4 / 90) / variance)
    assert "these cells scatter more between seeds than the others" in found.notes


def test_one_seed_everywhere_by_hand():
    asked = [[4, 3, 4, 2, 3, 4, 3, 4]]
    right = [[[4, 2, 3, 0, 1, 4, 2, 3]], [[3, 2, 4, 1, 1, 4, 3, 4]]]
    found = contrast([pseudo_values(row, asked) for row in right], [-1, 1], blocked=True)
    # 22/27 − 19/27 = 1/9. Right answers gained: −1, 0, 1, 1, 0, 0, 1, 1; less asked/9, times 9:
    # −13, −3, 5, 7, −3, −4, 6, 5, squares add up to 338; mean asked 27/8.
    v_item = 338 / 81 / (27 / 8) ** 2 / 7 / 8
    assert found.kind == "items_only"
    assert found.estimate == pytest.approx(1 / 9)
    assert found.v_item == pytest.approx(v_item)
    assert found.variance == pytest.approx(v_item)
    half = stats.t.ppf(0.975, 7) * math.sqrt(v_item)
    assert found.interval == pytest.approx((1 / 9 - half, 1 / 9 + half))
    assert found.p is None
    assert found.p_equivalence is None
    assert found.v_seed is None
    assert found.v_res is None
    assert found.seed_share is None
    assert not found.guard
    assert found.notes == ("items only: this says nothing of training variance",)


def test_one_seed_gives_no_p_even_with_a_delta():
    assert (
        contrast([make_rows(5), make_rows(5)], [1, -1], blocked=False, delta=9.0).p_equivalence
        is None
    )


def test_no_item_outcomes_by_hand():
    found = contrast([[[10], [12]], [[13], [17]]], [-1, 1], blocked=False, delta=10)
    # s² = 2 and 8, pooled 5 with 2 degrees of freedom; K = 1/2 + 1/2; V = 5; est = 15 − 11
    assert found.kind == "seeds_only"
    assert (found.v_item, found.v_res) == (0.0, 0.0)
    assert found.variance == pytest.approx(5)
    assert found.df == pytest.approx(2)
    t = 4 / math.sqrt(5)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))  # Student's t with 2
    # equivalence: at or above 10: t = (10 − 4)/√5, one-sided
    t = 6 / math.sqrt(5)
    assert found.p_equivalence == pytest.approx((1 - t / math.sqrt(2 + t**2)) / 2)
    assert found.notes == ("benchmark items treated as fixed",)


def test_one_seed_and_no_items_is_an_estimate_and_no_more():
    found = contrast([[[10]], [[13]]], [-1, 1], blocked=True, delta=1)
    assert found.estimate == 3
    assert found.kind == "estimate_only"
    assert (found.variance, found.se, found.df, found.p, found.interval) == (None,) * 5


def test_a_one_seed_cell_borrows_the_others_variance():
    cells = [[[10], [12]], [[13]], [[20], [26]]]
    found = contrast(cells, [-1, 1, 0], blocked=True)
    # s² = 2 and 18, pooled 10 with 2; K = 1/2 + 1
    assert found.borrowed
    assert not found.blocked
    assert not found.guard
    assert found.v_seed == pytest.approx(15)
    assert found.df == pytest.approx(2)
    assert found.p is not None


def test_a_one_seed_cell_takes_the_pools_mean_residual():
    cells = [make_rows(3, 5), make_rows(4), [[0, 1] * 5, [1, 0] * 5]]
    found = contrast(cells, [-1, 1, 0], blocked=False)
    # Residual squares: the first cell's rows differ in 2 of 10: r = ±(difference − 0.2)/2,
    # Σr² = Σ(d − 0.2)²/2 = (2·0.64 + 8·0.04)/2 = 0.8; the third's d = ±1: 10/2 = 5; both /9.
    first, third = 0.8 / 9, 5 / 9
    assert found.v_res == pytest.approx((first / 2 + (first + third) / 2) / 10)


def test_welch_when_the_guard_takes_the_contrasts_own_scatter():
    cells = [[[0], [40]], [[10], [30], [20]], *[[[0], [1], [2]]] * 3]
    found = contrast(cells, [-1, 1, 0, 0, 0], blocked=False)
    # a = 800/2 and 100/3; df = (Σa)²/(a₁²/1 + a₂²/2). The others' s² = 1 with 6.
    a, b = 400.0, 100 / 3
    assert found.guard
    assert found.v_seed == pytest.approx(a + b)
    assert found.df_seed == pytest.approx((a + b) ** 2 / (a**2 / 1 + b**2 / 2))


def test_fewer_than_four_cells_or_an_incomplete_block_are_unblocked():
    four = [make_rows(1, 3), make_rows(2, 4), make_rows(3, 5), make_rows(4, 7)]
    assert contrast(four, [1, -1, 0, 0], blocked=True).blocked
    assert not contrast(four, [1, -1, 0, 0], blocked=False).blocked
    assert not contrast(four[:3], [1, -1, 0], blocked=True).blocked
    assert not contrast([*four, make_rows(1, 2, 3)], [1, -1, 0, 0, 0], blocked=True).blocked
    # A cell that takes no part does not break the block.
    aside = [True] * 4 + [False]
    assert contrast([*four, make_rows(1, 2, 3)], [1, -1, 0, 0, 0], blocked=True, pool=aside).blocked
    assert contrast([*four, make_rows(1)], [1, -1, 0, 0, 0], blocked=True).blocked


def test_blocking_takes_out_what_a_seed_does_to_all_cells():
    seeds = np.array([[0.0], [5.0], [11.0]])
    cells = [seeds + c + np.array([[0.1], [0.0], [-0.1]]) * (-1) ** c for c in range(4)]
    blocked = contrast(cells, [1, -1, 0, 0], blocked=True)
    plain = contrast(cells, [1, -1, 0, 0], blocked=False)
    assert blocked.se < plain.se / 20
    assert seed_correlation(cells) > 0.99


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.0])
def test_where_nothing_varies_no_test_is_reported(blocked, value):
    cells = [np.full((3, 7), value)] * 3 + [np.full((3, 7), 2 * value)]
    found = contrast(cells, [-1, 0, 0, 1], blocked=blocked, delta=0.1)
    assert found.estimate == pytest.approx(value)
    assert (found.variance, found.se) == (0.0, 0.0)
    assert (found.p, found.p_equivalence, found.df, found.interval) == (None,) * 4
    assert found.seed_share is None


def test_equivalence_is_the_worse_of_two_one_sided_tests():
    found = contrast(LOUD, [0, 1, 0, 0, -1, 0], blocked=True, delta=0.2)
    below = stats.t.sf((found.estimate + 0.2) / found.se, found.df)
    above = stats.t.cdf((found.estimate - 0.2) / found.se, found.df)
    assert found.p_equivalence == pytest.approx(max(below, above))


def test_alpha_is_the_intervals():
    wide = contrast(LOUD, [0, 1, 0, 0, -1, 0], blocked=True, alpha=0.01).interval
    slim = contrast(LOUD, [0, 1, 0, 0, -1, 0], blocked=True, alpha=0.5).interval
    assert wide[0] < slim[0] < slim[1] < wide[1]


@pytest.mark.parametrize(
    ("values", "weights", "options", "said"),
    [
        ([], [], {}, "at least one cell"),
        ([[1, 2], [1, 2]], [1, -1], {}, "1 dimensions"),
        ([make_rows(1), make_rows(1, units=9)], [1, -1], {}, "number of units"),
        ([make_rows(1), [[math.nan] * 10]], [1, -1], {}, r"values\[1\] is not finite"),
        ([make_rows(1), make_rows(2)], [1, -1, 0], {}, "for 2 cells"),
        ([make_rows(1), make_rows(2)], [1, -0.9], {}, "add up to 0.1"),
        ([make_rows(1), make_rows(2)], [0, 0], {}, "nothing to compare"),
        ([make_rows(1), make_rows(2)], [1, -1], {"pool": [True]}, "not a mask"),
        ([make_rows(1), make_rows(2)], [1, -1], {"pool": [0, 1]}, "not a mask"),
        ([make_rows(1), make_rows(2)], [1, -1], {"delta": 0}, "above 0"),
        ([make_rows(1), make_rows(2)], [1, -1], {"alpha": 5}, "probability"),
    ],
)
def test_what_is_no_contrast_is_refused(values, weights, options, said):
    with pytest.raises(ValueError, match=said):
        contrast(values, weights, blocked=False, **options)


def test_seed_correlation_by_hand():
    # Seed means (0, 2), (1, 5): s² = 2 and 8, unblocked 5. Blocked: rows' halves ±1 and ±2,
    # seeds' ±1.5: rest ±0.5 four times, Σ = 1 with 1 degree of freedom. r̂ = 1 − 1/5.
    assert seed_correlation([[[0], [2]], [[1], [5]]]) == pytest.approx(0.8)
    assert seed_correlation([[[0], [2]], [[1], [5]], [[9]]]) is None
    assert seed_correlation([[[0], [2]], [[1], [5]], [[9]]], [True, True, False]) is not None
    assert seed_correlation([[[0]], [[1]]]) is None
    assert seed_correlation([[[1], [1]], [[2], [2]]]) is None


def make_constant_cells(*percents, seeds=2):
    return [np.full((seeds, 1), float(percent)) for percent in percents]


def test_report_pool():
    cells = make_constant_cells(20, 30, 13, 49, 60, 5)
    # The contrast's mean is 25: kept from 12.5 to 50, and the contrast's own cells.
    assert report_pool(cells, [-1, 1, 0, 0, 0, 0]).tolist() == [True] * 4 + [False] * 2
    assert report_pool(make_constant_cells(1, 49, 25, 24, 9), [-1, 1, 0, 0, 0]).tolist() == [
        True
    ] * 4 + [False]
    # Fewer than two others left: all.
    assert report_pool(make_constant_cells(20, 30, 13, 60), [-1, 1, 0, 0]).all()
    collapsed = [False, False, False, True, False, False]
    assert report_pool(cells, [-1, 1, 0, 0, 0, 0], collapsed=collapsed).all()
    one_seed = [
        *make_constant_cells(20, 30, 13),
        *make_constant_cells(49, seeds=1),
        *make_constant_cells(60),
    ]
    assert report_pool(one_seed, [-1, 1, 0, 0, 0]).all()
    # Below one point: all.
    assert report_pool(make_constant_cells(0.4, 0.8, 0.6, 0.6, 60), [-1, 1, 0, 0, 0]).all()
    fractions = [cell / 100 for cell in cells]
    assert report_pool(fractions, [-1, 1, 0, 0, 0, 0]).all()
    assert not report_pool(fractions, [-1, 1, 0, 0, 0, 0], point=0.01).all()
    with pytest.raises(ValueError, match="fit"):
        report_pool(cells, [-1, 1])
