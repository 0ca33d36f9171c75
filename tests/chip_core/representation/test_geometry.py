"""Distances, probe and common basis on vectors whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chip_core.representation.geometry import (
    compute_common_basis,
    compute_distances,
    compute_figures,
    compute_probe_auc,
)
from chip_core.representation.states import Representations


def make_representations(image: object, true: object, hallucinated: object) -> Representations:
    parts = [np.array(part, dtype=float) for part in (image, true, hallucinated)]
    return Representations(image=parts[0], true=parts[1], hallucinated=parts[2], layer=1)


def draw_representations(
    items: int, size: int, *, apart: float = 0.0, seed: int = 0
) -> Representations:
    """Draw normal vectors; the two kinds of description lie `apart` along the first axis."""
    random = np.random.default_rng(seed)
    image, true, hallucinated = random.normal(size=(3, items, size))
    true[:, 0] += apart / 2
    hallucinated[:, 0] -= apart / 2
    return make_representations(image, true, hallucinated)


def test_distances_by_hand() -> None:
    found = compute_distances(
        make_representations([[1, 0], [3, 4]], [[0, 2], [3, 4]], [[1, 1], [-3, -4]])
    )
    # Item 1: cos(image, truth) = 0, ‖(1, −2)‖ = √5; to (1, 1): cos = 1/√2, ‖(0, −1)‖ = 1.
    # Item 2: the truth is the image; the hallucination is its opposite, 2·5 away.
    assert found["image_truth/cosine"] == pytest.approx([1, 0])
    assert found["image_truth/euclidean"] == pytest.approx([math.sqrt(5), 0])
    assert found["image_hallucination/cosine"] == pytest.approx([1 - math.sqrt(0.5), 2])
    assert found["image_hallucination/euclidean"] == pytest.approx([1, 10])
    # Truth (0, 2) and hallucination (1, 1): cos = 1/√2, ‖(−1, 1)‖ = √2.
    assert found["truth_hallucination/cosine"] == pytest.approx([1 - math.sqrt(0.5), 2])
    assert found["truth_hallucination/euclidean"] == pytest.approx([math.sqrt(2), 10])
    assert found["nearer_truth/cosine"] == pytest.approx([-math.sqrt(0.5), 2])
    assert found["nearer_truth/euclidean"] == pytest.approx([1 - math.sqrt(5), 10])


def test_a_planted_separation_is_found_whole_and_none_is_not() -> None:
    apart = compute_figures([draw_representations(100, 16, apart=30.0)])["probe_auc"]
    assert (apart.value, apart.low, apart.high) == (1.0, 1.0, 1.0)
    none = compute_figures([draw_representations(200, 16)])["probe_auc"]
    # Standard error of an AUC of .5 with n of each kind: √((2n + 1)/(12·n²)) = .029 at n = 200.
    assert none.value == pytest.approx(0.5, abs=3 * 0.029)
    assert none.low < 0.5 < none.high


def test_a_probe_of_more_directions_than_items_does_not_find_what_is_not_there() -> None:
    found = compute_figures([draw_representations(100, 500, seed=2)])["probe_auc"]
    assert found.value == pytest.approx(0.5, abs=0.12)  # 3 standard errors at n = 100


def test_a_middling_separation_has_the_auc_of_two_normals() -> None:
    # Along the true direction AUC = Φ(d/√2); d = 1: Φ(.7071) = .760. A fitted probe is near it.
    found = draw_representations(2000, 2, apart=1.0)
    value, _ = compute_probe_auc(found.true, found.hallucinated, np.ones((1, 2000), dtype=int))
    assert value == pytest.approx(0.760, abs=0.02)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    held = 0
    for seed in range(40):
        found = draw_representations(60, 4, seed=seed)
        figure = compute_figures([found])["image_truth/euclidean"]
        # ‖x − y‖ of independent normals in 4 dimensions: √2·chi(4), mean √2·√2·Γ(5/2)/Γ(2).
        mean = 2 * math.gamma(2.5) / math.gamma(2)
        held += figure.low <= mean <= figure.high
    assert held >= 34  # 38 of 40, less 3 standard errors of 1.4


def test_of_several_models_the_mean_counts_item_by_item() -> None:
    one, other = draw_representations(30, 4, seed=1), draw_representations(30, 4, seed=2)
    both, first, second = (
        compute_figures([one, other]),
        compute_figures([one]),
        compute_figures([other]),
    )
    for name, figure in both.items():
        assert figure.value == pytest.approx((first[name].value + second[name].value) / 2)


def test_figures_are_the_same_twice() -> None:
    assert compute_figures([draw_representations(30, 4)]) == compute_figures(
        [draw_representations(30, 4)]
    )


def test_the_basis_is_common_and_holds_what_was_planted() -> None:
    one, other = (
        draw_representations(50, 6, apart=40.0),
        draw_representations(50, 6, apart=20.0, seed=1),
    )
    basis = compute_common_basis([one, other])
    assert basis.axes @ basis.axes.T == pytest.approx(np.eye(3), abs=1e-12)
    assert basis.axes[0] == pytest.approx([1, 0, 0, 0, 0, 0], abs=0.1)  # the planted direction
    assert 0.9 < basis.explained[0] < 1 and sum(basis.explained) <= 1
    # Both are shown in it: the second lies half as far apart along the first axis as the first.
    width = [
        (basis.project(found.true) - basis.project(found.hallucinated))[:, 0].mean()
        for found in (one, other)
    ]
    assert width == pytest.approx([40, 20], abs=1.5)
    again = compute_common_basis([one, other])
    assert np.array_equal(again.axes, basis.axes)


def test_models_of_different_sizes_have_no_common_basis() -> None:
    with pytest.raises(ValueError, match="hidden sizes"):
        compute_common_basis([draw_representations(5, 4), draw_representations(5, 6)])
