import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis import contrast


@st.composite
def draw_studies(draw):
    """Draw values of four or five cells with random effects, and a weight vector."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells, units = draw(st.integers(4, 5)), draw(st.integers(1, 15))
    seeds = [draw(st.integers(1, 4))] * cells
    if draw(st.booleans()):
        seeds = [draw(st.integers(1, 4)) for _ in range(cells)]
    item = rng.normal(size=units)
    values = [rng.normal(size=(s, 1)) + item + rng.normal(size=(s, units)) for s in seeds]
    weights = rng.normal(size=cells)
    return values, weights - weights.mean(), draw(st.booleans())


FIGURES = ("v_seed", "v_item", "v_res", "variance", "df", "p", "seed_share")


def is_close(one, other):
    return (one is None) == (other is None) and (
        one is None or math.isclose(one, other, rel_tol=1e-6)
    )


@given(draw_studies(), st.integers(-3000, 3000).map(lambda thousandth: thousandth / 1000))
def test_the_estimate_is_linear_in_the_weights(study, factor):
    values, weights, blocked = study
    other = np.roll(weights, 1) * factor
    if not other.any() or np.abs(weights + other).max() < 1e-6:
        return
    parts = [contrast(values, w, blocked=blocked).estimate for w in (weights, other)]
    whole = contrast(values, weights + other, blocked=blocked).estimate
    assert whole == pytest.approx(sum(parts), abs=1e-9)


@given(draw_studies(), st.randoms())
def test_the_order_of_items_and_of_cells_changes_nothing(study, random):
    values, weights, blocked = study
    items, cells = list(range(values[0].shape[1])), list(range(len(values)))
    random.shuffle(items)
    random.shuffle(cells)
    one = contrast(values, weights, blocked=blocked)
    other = contrast([values[c][:, items] for c in cells], weights[cells], blocked=blocked)
    assert one.estimate == pytest.approx(other.estimate, abs=1e-9)
    assert one.guard == other.guard
    assert all(is_close(getattr(one, name), getattr(other, name)) for name in FIGURES)


@given(draw_studies(), st.sampled_from([-100.0, -1.0, 0.01, 100.0]))
def test_scaling_the_values_scales_estimate_and_error(study, scale):
    values, weights, blocked = study
    one = contrast(values, weights, blocked=blocked)
    other = contrast([cell * scale for cell in values], weights, blocked=blocked)
    assert other.estimate == pytest.approx(one.estimate * scale, abs=1e-9 * abs(scale))
    if one.se is not None:
        assert other.se == pytest.approx(one.se * abs(scale))
    assert all(is_close(getattr(one, name), getattr(other, name)) for name in ("df", "p"))


@given(draw_studies())
def test_identical_cells_do_not_differ(study):
    values, _, blocked = study
    cells = [values[0], values[0], *values[2:]]
    found = contrast(cells, [1, -1] + [0] * (len(cells) - 2), blocked=blocked)
    assert found.estimate == 0
    assert found.p in (None, 1.0)


@given(draw_studies())
def test_the_variance_is_no_less_than_either_source(study):
    values, weights, blocked = study
    found = contrast(values, weights, blocked=blocked)
    if found.v_seed is not None:
        assert found.variance >= max(found.v_seed, found.v_item)
        assert found.df is None or found.df >= 1
        assert (found.p < 0.05) == (not found.interval[0] <= 0 <= found.interval[1])
