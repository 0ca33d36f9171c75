"""A name that is not there is told with the near one and the choices."""

from __future__ import annotations

import pytest

from chip_core.utils.registry import Registry, suggest


def test_a_lookup_that_fails_names_the_near_ones() -> None:
    registry: Registry[int] = Registry("colour")
    registry.register("green")(2)
    registry.register("blue")(3)
    assert (len(registry), sorted(registry), registry["blue"]) == (2, ["blue", "green"], 3)
    with pytest.raises(KeyError, match="unknown colour 'gren': did you mean 'green'. choices: bl"):
        registry["gren"]
    assert "gren" not in registry


def test_nothing_near_is_not_suggested() -> None:
    assert suggest("xyz", ["green", "blue"]) == "choices: blue, green"


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["b", "a"], "a, b"),
        (["dpo, seed 0", "chip"], "'chip', 'dpo, seed 0'"),  # else three names are read, not two
        (["", "x"], "'', 'x'"),
        ([], "none"),
    ],
)
def test_a_name_with_a_comma_is_seen_to_be_one(names: list[str], listed: str) -> None:
    assert suggest("zzz", names) == f"choices: {listed}"
