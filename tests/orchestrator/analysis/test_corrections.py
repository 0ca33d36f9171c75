import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis import benjamini_hochberg, holm

P = [0.01, 0.04, 0.03, 0.005, 0.2]


def test_holm_by_hand():
    # ascending 0.005·5 = 0.025, 0.01·4 = 0.04, 0.03·3 = 0.09, 0.04·2 = 0.08 → 0.09, 0.2·1 = 0.2
    assert holm(P) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])


def test_benjamini_hochberg_by_hand():
    # ascending 0.005·5/1 = 0.025, 0.01·5/2 = 0.025, 0.03·5/3 = 0.05, 0.04·5/4 = 0.05, 0.2·5/5
    assert benjamini_hochberg(P) == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.2])


def test_a_later_p_pulls_an_earlier_one_down_under_benjamini_hochberg():
    # 0.04·2/1 = 0.08, 0.045·2/2 = 0.045: the first may not be larger than the second
    assert benjamini_hochberg([0.04, 0.045]) == pytest.approx([0.045, 0.045])


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_a_missing_p_stays_missing_and_is_not_counted(correct):
    assert correct([None, 0.01, float("nan"), 0.02]) == [
        None,
        *_correct_two(correct)[:1],
        None,
        0.02,
    ]


def _correct_two(correct):
    return correct([0.01, 0.02])


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_nothing_to_correct(correct):
    assert correct([]) == []
    assert correct([None]) == [None]
    assert correct([0.3]) == [0.3]


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("inf")])
def test_what_is_no_probability_is_refused(correct, wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        correct([0.1, wrong])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_are_no_smaller_no_larger_than_one_and_in_the_same_order(p):
    exact, loose = holm(p), benjamini_hochberg(p)
    for adjusted in (exact, loose):
        assert all(before <= after * (1 + 1e-12) for before, after in zip(p, adjusted, strict=True))
        assert max(adjusted) <= 1.0
        order = np.argsort(p, kind="stable")
        assert (np.diff(np.array(adjusted)[order]) >= -1e-15).all()
    assert all(b <= h * (1 + 1e-12) for b, h in zip(loose, exact, strict=True))
