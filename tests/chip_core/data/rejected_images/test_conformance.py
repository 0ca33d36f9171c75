"""Every strategy passes every check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chip_core.config import RejectedImageConfig
from chip_core.data.rejected_images import REJECTED_IMAGES
from chip_core.data.rejected_images.conformance import CHECKS, Bench
from chip_core.strategies import STRATEGIES, NoParameters


def config(strategy: str, pipeline: Path, **settings: Any) -> RejectedImageConfig:
    tree: dict[str, Any] = {"strategy": strategy}
    if strategy == "inpaint":
        settings = {"path": str(pipeline), "steps": 2, "side": 64, **settings}
    if settings:
        tree[strategy] = settings
    return RejectedImageConfig.model_validate(tree)


def test_registry_and_configuration_name_the_same_strategies() -> None:
    assert set(REJECTED_IMAGES) == set(STRATEGIES)
    for name, section in STRATEGIES.items():
        assert REJECTED_IMAGES[name].parameters is section
        if section is not NoParameters:
            assert RejectedImageConfig.model_fields[name].annotation is section


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_conformance(strategy: str, check: str, pipeline: Path) -> None:
    assert CHECKS[check](Bench(config(strategy, pipeline))) is None
