"""What a trial's settings need that is not everywhere: a package, or another setting."""

from __future__ import annotations

from importlib.util import find_spec

from chip_core.config.trial import TrialConfig


def lacking_packages(config: TrialConfig) -> list[str]:
    """Return what a trial's training lacks here, each with what to do; empty where nothing."""
    lacking = []
    if config.optimizer.states == "int8" and find_spec("torchao") is None:
        lacking.append(
            "optimizer.states is int8, and torchao is not installed here: "
            "pip install 'chip-ablate[int8]', or write optimizer.states: fp32"
        )
    if config.model.quantize == "nf4" and find_spec("bitsandbytes") is None:
        lacking.append(
            "model.quantize is nf4, and bitsandbytes is not installed here: "
            "pip install 'chip-ablate[nf4]', or write model.quantize: none"
        )
    return lacking
