"""The size of a reference cache is told of public data that is not on this machine."""

from __future__ import annotations

from chip_core import recipes
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.reference_cache.size import USUAL_RESPONSE_TOKENS, estimate_store_bytes
from chip_core.reference_cache.spec import CacheSpec, list_cache_specs


def list_specs(**settings: object) -> tuple[TrialConfig, dict[str, CacheSpec]]:
    tree = recipes.read_yaml(recipes.find_recipe("llava-1.6-7b"))
    for key, value in settings.items():
        set_key(tree, key.replace("__", "."), value)
    config = parse_trial_config(tree, "llava-1.6-7b")
    return config, {one.kind: one for one in list_cache_specs(config, {}, {})}


def test_the_pairs_and_widths_are_the_published_ones() -> None:
    config, found = list_specs()
    # Of each token its id, its log-probability and 4,096 numbers in bf16; the output head as the
    # model holds it.
    token, head = 4 + 4 + 2 * 4096, 2 * 4096 * 32064
    assert estimate_store_bytes(found["text"], config, None) == (
        5733 * 2 * USUAL_RESPONSE_TOKENS * token + head
    )
    assert (
        estimate_store_bytes(found["rejected_image"], config, None)
        == 5733 * USUAL_RESPONSE_TOKENS * 8
    )


def test_a_limit_counts() -> None:
    config, found = list_specs(data__limit=100)
    assert (
        estimate_store_bytes(found["rejected_image"], config, None)
        == 100 * USUAL_RESPONSE_TOKENS * 8
    )


def test_other_data_is_not_known() -> None:
    config, found = list_specs(data__source="nobody/pairs")
    assert estimate_store_bytes(found["text"], config, None) is None
