"""The conformance vectors, where they lie beside the repository."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis import benjamini_hochberg, contrast, holm, pseudo_values

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "statistics" / "vectors.json"
NAMES = {
    "est": "estimate",
    "kind": "kind",
    "V_seed": "v_seed",
    "V_item": "v_item",
    "V_res": "v_res",
    "V": "variance",
    "se": "se",
    "df": "df",
    "p": "p",
    "ci": "interval",
    "guard": "guard",
    "seed_share": "seed_share",
    "p_equiv": "p_equivalence",
}


@pytest.fixture(scope="module")
def vectors():
    if not VECTORS.is_file():
        pytest.skip("no statistics/vectors.json in ../shared")
    return {case["name"]: case for case in json.loads(VECTORS.read_text())}


def assert_matches(found, expected):
    for name, value in expected.items():
        actual = found.estimate / found.se if name == "t" else getattr(found, NAMES[name])
        if value is None or isinstance(value, bool | str):
            assert actual == value, name
        else:
            np.testing.assert_allclose(actual, value, rtol=0, atol=1e-7, err_msg=name)


def contrast_with_first(cell, cells):
    weights = np.zeros(cells)
    weights[cell], weights[0] = 1, -1
    return weights


def test_binary_blocked(vectors):
    case = vectors["binary_blocked_4x3x12"]
    y, expected, delta = case["inputs"]["y"], case["expected"], case["inputs"]["sesoi"]
    np.testing.assert_allclose([np.mean(cell) for cell in y], expected["cell_means"], atol=1e-7)
    found = [contrast(y, contrast_with_first(c, 4), blocked=True, delta=delta) for c in (1, 2, 3)]
    for one, wanted in zip(found, expected["contrasts"], strict=True):
        assert_matches(one, wanted)
    p = [one.p for one in found]
    np.testing.assert_allclose(holm(p), expected["holm"], atol=1e-7)
    np.testing.assert_allclose(benjamini_hochberg(p), expected["bh"], atol=1e-7)
    main = contrast(y, [-0.5, 0.5, -0.5, 0.5], blocked=True)
    assert_matches(main, expected["main_effect_A_cells_order_00_10_01_11"])
    assert_matches(contrast(y, [1, -1, -1, 1], blocked=True), expected["interaction"])


def test_ratio_unblocked_unequal_seeds(vectors):
    case = vectors["ratio_unblocked_unequal_seeds"]
    inputs, expected = case["inputs"], case["expected"]
    y = [pseudo_values(*pair) for pair in zip(inputs["num"], inputs["den"], strict=True)]
    for cell, ratios in zip(y, expected["seed_ratios"], strict=True):
        np.testing.assert_allclose(cell.mean(axis=1), ratios, atol=1e-7)
    np.testing.assert_allclose(y[0][0], expected["pseudo_cell0_seed0"], atol=1e-7)
    for c, wanted in enumerate(expected["contrasts"], start=1):
        found = contrast(y, contrast_with_first(c, 4), blocked=False, delta=inputs["sesoi"])
        assert_matches(found, wanted)
        assert found.borrowed == (len(y[c]) == 1)


def test_one_seed_clustered_items_only(vectors):
    case = vectors["one_seed_clustered_items_only"]
    questions = [case["inputs"]["questions_per_figure"]]
    y = [pseudo_values([right], questions) for right in case["inputs"]["correct_per_figure"]]
    assert_matches(contrast(y, [-1, 1], blocked=False), case["expected"])


def test_guard_fires_blocked(vectors):
    case = vectors["guard_fires_blocked"]
    assert_matches(
        contrast(case["inputs"]["y"], [-1, 0, 0, 1, 0, 0], blocked=True),
        case["expected"],
    )


def test_holm_and_benjamini_hochberg(vectors):
    case = vectors["holm_bh"]
    np.testing.assert_allclose(holm(case["inputs"]["p"]), case["expected"]["holm"])
    np.testing.assert_allclose(benjamini_hochberg(case["inputs"]["p"]), case["expected"]["bh"])
