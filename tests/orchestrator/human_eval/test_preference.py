"""Win, tie and lose: each expected number with its arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies
from scipy.stats import t

from orchestrator.human_eval.preference import compute_human_figures, wilson_interval
from orchestrator.human_eval.replies import Judgement, Verdict

Z = 1.959963984540054


def make_judgements(item: str, *verdicts: Verdict, seed: int = 0) -> list[Judgement]:
    """Make one judgement a sheet; the side chosen is always A."""
    return [
        Judgement(
            item=item,
            seed=seed,
            sheet=sheet,
            verdict=verdict,
            chose_a=True if verdict in ("win", "lose") else None,
        )
        for sheet, verdict in enumerate(verdicts, start=1)
    ]


def test_items_are_the_unit() -> None:
    made = [
        *make_judgements("1", "win", "win", "lose", "win"),  # w 3/4, l 1/4: d 1/2
        *make_judgements("2", "tie"),  # d 0
        *make_judgements("3", "lose"),  # d −1
        *make_judgements("4", "win", "cant_tell"),  # d 1; half of it could be judged
        *make_judgements("5", "cant_tell"),  # judged by nobody
    ]
    found = compute_human_figures(made)
    assert found.choices == 9 and found.items == 5
    assert found.win is not None and found.win.items == 4
    assert found.win.value == pytest.approx((0.75 + 0 + 0 + 1) / 4)
    assert found.tie is not None and found.tie.value == pytest.approx(1 / 4)
    assert found.lose is not None and found.lose.value == pytest.approx((0.25 + 1) / 4)
    assert found.judged is not None
    assert found.judged.value == pytest.approx((1 + 1 + 1 + 0.5 + 0) / 5)
    assert found.preference is not None
    assert found.preference.value == pytest.approx((0.5 + 0 - 1 + 1) / 4)
    # d = .5, 0, −1, 1, mean .125: squares .140625 + .015625 + 1.265625 + .765625 = 2.1875
    # 3.18 · √(2.1875/3/4) = 1.36 to each side: all that a preference can be.
    assert t.ppf(0.975, 3) * math.sqrt(2.1875 / 3 / 4) == pytest.approx(1.359, abs=1e-3)
    assert found.preference.over_items == (-1.0, 1.0)
    assert found.preference.over_seeds is None and found.preference.p is None
    assert found.chose_a is not None and found.chose_a.value == 1.0


def test_training_seeds_widen_the_interval() -> None:
    # Seed 0: d = 1, 1, 0 (mean 2/3); seed 1: d = 0, 0, −1 (mean −1/3). Mean 1/6.
    # V_item: squares about 1/6: 2·25/36 + 3·1/36 + 49/36 = 102/36; /5 = 17/30; /6 items = 17/180.
    # V_seed: var(2/3, −1/3) = 1/2; /2 = 1/4 = V. df: (1/16) / ((1/16)/1 + (17/180)²/5) < 1, so 1.
    made = [
        *make_judgements("1", "win"),
        *make_judgements("2", "win"),
        *make_judgements("3", "tie"),
        *make_judgements("4", "tie", seed=1),
        *make_judgements("5", "tie", seed=1),
        *make_judgements("6", "lose", seed=1),
    ]
    found = compute_human_figures(made).preference
    assert found is not None
    assert found.by_seed == pytest.approx({0: 2 / 3, 1: -1 / 3})
    items = t.ppf(0.975, 5) * math.sqrt(17 / 180)
    assert found.over_items == pytest.approx((1 / 6 - items, 1 / 6 + items))
    assert found.over_seeds == (-1.0, 1.0)  # 12.7 · √(1/4) to each side, cut
    assert found.p == pytest.approx(2 * t.sf(1 / 6 / 0.5, 1))


def test_nothing_judged() -> None:
    found = compute_human_figures(make_judgements("1", "cant_tell", "cant_tell"))
    assert found.win is None and found.preference is None and found.agreement.alpha is None
    assert found.judged is not None and found.judged.value == 0.0
    assert compute_human_figures([]).judged is None


def test_all_alike_gives_no_interval_of_width_nothing() -> None:
    found = compute_human_figures(
        [*make_judgements("1", "win"), *make_judgements("2", "win")]
    ).preference
    assert found is not None and found.value == 1.0
    assert found.over_items is None and found.over_seeds is None


def test_wilson_by_hand() -> None:
    # p = .4, n = 10, z² = 3.841459: middle (.4 + .19207295)/(1.3841459) = .42775332,
    # half z/1.3841459·√(.024 + 3.841459/400) = 1.41601 · .18331 = .25957
    low, high = wilson_interval(0.4, 10)
    assert (low, high) == pytest.approx((0.16818, 0.68733), abs=2e-5)
    # With no success: z²/(n + z²) above, 0 below.
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, Z**2 / (20 + Z**2)))


@given(strategies.floats(0, 1), strategies.integers(1, 500))
def test_wilson_holds_the_share_and_mirrors(share: float, n: int) -> None:
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    assert wilson_interval(1 - share, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_seeds_that_differ_are_not_taken_for_a_difference_of_the_arms() -> None:
    # 3 seeds of 20 items, no difference between the arms, seed SD .25 (as much as of items'
    # means): of 400 sets about 5 % have p < .05; over items alone it would be far more.
    random = np.random.default_rng(5)
    seeds = wrong = 0
    for _ in range(400):
        made = []
        for seed in range(3):
            lean = random.normal(0, 0.25)
            for item in range(20):
                drawn = random.random()
                verdict: Verdict = "win" if drawn < 0.35 + lean / 2 else "lose"
                verdict = "tie" if drawn > 0.7 else verdict
                made += make_judgements(f"{seed}/{item}", verdict, seed=seed)
        found = compute_human_figures(made).preference
        assert found is not None and found.p is not None and found.over_items is not None
        seeds += found.p < 0.05
        wrong += not found.over_items[0] <= 0 <= found.over_items[1]
    assert seeds / 400 < 0.08
    assert wrong / 400 > 0.15
