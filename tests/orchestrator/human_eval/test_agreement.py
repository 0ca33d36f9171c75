"""Krippendorff's α against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.human_eval.agreement import krippendorff_alpha


def test_a_case_worked_by_hand() -> None:
    # Units: {a a} {a b} {b b b} {a} (one value: left out).
    # Coincidences, each ordered pair weighted 1/(m − 1): aa 2/1 = 2; ab 1, ba 1; bb 3·2/2 = 3.
    # n_a = 2 + 1 = 3, n_b = 1 + 3 = 4, n = 7. Disagreements observed: 2. Σ_{c≠k} n_c·n_k = 2·12.
    # α = 1 − (7 − 1)·2/24 = 0.5.
    found = krippendorff_alpha([["a", "a"], ["a", "b"], ["b", "b", "b"], ["a"]])
    assert found.alpha == pytest.approx(0.5, abs=1e-15)
    assert found.units == 3


def test_four_observers_twelve_units_with_missing() -> None:
    # The worked example of Krippendorff, "Computing Krippendorff's alpha-reliability" (2011).
    # Matches Σ o_cc by unit: 3 + 3·2/3 + 4 + 4 + 4 + 0 + 4 + 3·2/3 + 4 + 3 + 2 = 32; the last has
    # one value. n_c of 1…5 = 9, 13, 10, 5, 3: n = 40, Σ n_c² = 384, Σ_{c≠k} n_c·n_k = 1216.
    # α = 1 − 39·(40 − 32)/1216 = 0.7434.
    observers = ["12332141 2...", "12332241 25.3", ".3332342 251.", "12332441 251."]
    columns = zip(*(row.replace(" ", "") for row in observers), strict=True)
    units = [[value for value in column if value != "."] for column in columns]
    assert len(units) == 12
    found = krippendorff_alpha(units)
    assert found.alpha == pytest.approx(1 - 39 * 8 / 1216)
    assert found.units == 11


def test_agreement_and_chance() -> None:
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]).alpha == 1.0
    # Two observers who never agree, in equal shares: o_ab + o_ba = 4, n = 4, Σ n_c·n_k = 8:
    # α = 1 − 3·4/8 = −0.5.
    assert krippendorff_alpha([["a", "b"], ["b", "a"]]).alpha == pytest.approx(-0.5)
    random = np.random.default_rng(1)
    found = krippendorff_alpha(random.integers(3, size=(600, 3)).tolist())
    assert found.alpha == pytest.approx(0.0, abs=0.06)
    assert found.interval is not None and found.interval[0] < found.alpha < found.interval[1]


@pytest.mark.parametrize("units", [[], [["a"], ["b"]], [["a", "a"], ["a", "a"]]])
def test_undefined_where_nothing_can_disagree(units: list[list[str]]) -> None:
    assert krippendorff_alpha(units).alpha is None
