"""What a trial's settings need that is not everywhere: a package, or another setting."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

from chip_core.config.trial import TrialConfig


def unmet_requirements(config: TrialConfig) -> list[str]:
    """Return what a trial's training lacks here, each with what to do; empty where nothing.

    A plan is shown all the same, and says so.
    """
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
    if config.engine.compile == "layers":
        lacking += _compiler_problems(config)
    if config.pairs.rounds and config.engine.workers_per_trial > 1:
        lacking.append(
            f"pairs.rounds is {config.pairs.rounds}, and one worker samples a model: write "
            "engine.workers_per_trial: 1, or pairs.rounds: 0"
        )
    return lacking


def _compiler_problems(config: TrialConfig) -> list[str]:
    """Return what torch.compile lacks here: Triton on a GPU, and a compiler anywhere."""
    gpu = config.engine.gpus_per_worker > 0 or config.engine.device == "cuda"
    if gpu and find_spec("triton") is None:
        return [
            "engine.compile is layers, and triton is not installed here: it comes with torch's "
            "CUDA builds: install one, or write engine.compile: off"
        ]
    # What torch's inductor asks for: CXX, or else one name.
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return [
            f"engine.compile is layers, and there is no C++ compiler here ({compiler}): install "
            "g++, or write engine.compile: off"
        ]
    return []
