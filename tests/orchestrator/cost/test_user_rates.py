"""Rates that the user gives, and what seeds buy."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.utils.errors import ConfigError
from orchestrator.cost.power import power_from_assumptions
from orchestrator.cost.rates import ANY_KIND
from orchestrator.cost.user_rates import Assumptions, UserRates, read_user_rates

from .conftest import make_seconds


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text("step: 1.5\nanswer: 0.2\nprice_per_gpu_hour: 2\nassumed: {rate: 5}\n")
    found = read_user_rates(file, {"step": 3.0, "answer": None})
    assert (found.step, found.answer, found.prices.gpu_hour) == (3.0, 0.2, 2)
    assert found.assumed == Assumptions(rate=5)
    source = found.source
    assert source is not None
    assert source.rates["step", ANY_KIND] == make_seconds(3)
    assert ("model", ANY_KIND) not in source.rates


def test_a_given_start_is_all_of_it() -> None:
    source = UserRates(start=20).source
    assert source is not None
    assert source.rates["model", ANY_KIND] == make_seconds(20)
    assert {source.rates[name, ANY_KIND].wall for name in ("imports", "row", "setup")} == {0}  # type: ignore[index]


def test_nothing_given_is_no_source() -> None:
    assert UserRates(price_per_gpu_hour=2).source is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stepp: 1", "rates.yaml: stepp: unknown key: did you mean 'step'"),
        ("step: -1", "rates.yaml: step: input should be greater than or equal to 0, not -1"),
        ("assumed: {rate: 100}", "assumed.rate: input should be less than 100"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_user_rates(file, {})


def test_seeds_by_assumption() -> None:
    found = power_from_assumptions("shapes/chair_i", "points", 3, 1000, 4, Assumptions())
    # V_item = 2 · 20 · 80 · 0.5 / 1000 = 1.6; V_seed = 2 · 1² / 3 = 0.667; V = 2.267, √V = 1.506.
    # df = V² / (V_seed² / (4 · 2) + V_item² / 999) = 5.138 / (0.0556 + 0.0026) = 88.4;
    # t of 1 − 0.05/6 is 2.44, t of 0.80 is 0.846: 3.29 · 1.506 = 4.95.
    assert dict(found.differences)[3] == pytest.approx(4.95, abs=0.02)
    assert [seeds for seeds, _ in found.differences] == [2, 3, 5, 10]
    values = [difference for _, difference in found.differences]
    assert values == sorted(values, reverse=True)
    assert found.comparisons == 3


def test_without_seed_variance_items_alone_are_left() -> None:
    found = power_from_assumptions("m", "points", 3, 1000, 2, Assumptions(seed_sd=0))
    # √1.6 · (t_.975 + t_.80 at 999) = 1.265 · (1.962 + 0.842) = 3.547, whatever the seeds.
    assert {round(value, 2) for _, value in found.differences} == {3.55}
