import numpy as np
import pytest

from orchestrator.analysis import pseudo_values


def test_a_score_is_its_own_value():
    scores = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(pseudo_values(scores), scores)


def test_a_ratio_is_linearised_about_each_seeds_own_ratio():
    # Seed 0: R = 3/6 = 0.5, mean den = 2; y = 0.5 + (num − 0.5·den)/2
    #   (1 − 0.5)/2 = 0.25, (2 − 1.5)/2 = 0.25, (0 − 1)/2 = −0.5
    # Seed 1: R = 6/6 = 1, mean den = 2; y = 1 + (num − den)/2
    #   (3 − 1)/2 = 1, (3 − 3)/2 = 0, (0 − 2)/2 = −1
    values = pseudo_values([[1, 2, 0], [3, 3, 0]], [[1, 3, 2], [1, 3, 2]])
    np.testing.assert_allclose(values, [[0.75, 0.75, 0.0], [2.0, 1.0, 0.0]])


def test_a_rows_mean_is_the_ratio_even_with_empty_units():
    num, den = np.array([[2.0, 0.0, 1.0]]), np.array([[4.0, 0.0, 3.0]])
    assert pseudo_values(num, den).mean() == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("num", "den", "said"),
    [
        ([1, 2], None, "1 dimensions"),
        (np.empty((2, 0)), None, "empty"),
        ([[1.0, np.nan]], None, "not finite"),
        ([[1, 1]], [[1, 1, 1]], "shape"),
        ([[1, 1]], [[1, -1]], "negative"),
        ([[1, 0], [0, 0]], [[1, 1], [0, 0]], r"row \[1\]"),
    ],
)
def test_what_is_no_table_of_outcomes_is_refused(num, den, said):
    with pytest.raises(ValueError, match=said):
        pseudo_values(num, den)
