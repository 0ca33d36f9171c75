"""Make preference pairs from an existing model's answers, without training or a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from chip_core.config.benchmark import DataPaths
from chip_core.config.identity import model_identity
from chip_core.config.pairs import PairsConfig
from chip_core.config.trial import DataConfig
from chip_core.evaluate import model_problems, resolve_model, weights_id
from chip_core.models import loading
from chip_core.pairs.make import SampledModel, SamplingResult, make_pairs
from chip_core.pairs.prompts import prompts_identity, read_prompts
from chip_core.pairs.ranking import open_ranker
from chip_core.results import Progress
from chip_core.trained import weights_fingerprint
from chip_core.utils.errors import ConfigError
from chip_core.utils.seeding import seed_process


def sample_pairs(  # noqa: PLR0913 (options of the public function)
    model: str,
    prompts: DataConfig,
    settings: PairsConfig,
    *,
    folder: Path,
    places: DataPaths,
    seed: int = 0,
    base: str | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 64,
    report: Callable[[Progress], None] = lambda progress: None,
) -> SamplingResult:
    """Sample a model's answers, rank them, and write best against worst as preference pairs.

    Answers of the same weights and settings that are already in `folder` are reused.

    Args:
        model: 'shapes', a folder, or a hub name.
        prompts: rows of image and prompt.
        settings: how answers are sampled, ranked and paired.
        folder: gets the pairs; it holds nothing else.
        places: where the ranker's data are.
        seed: of all random draws.
        base: the base model of a PEFT folder; None: the one that the folder names.
        dtype: the precision of generation.
        batch_size: answers generated together.
        report: called with the progress.

    Raises:
        UserError: there is no such model, the prompts cannot be read, the ranker lacks something,
            or there is no pair.
        TrialError: the model cannot be loaded, or a judge does not reply.
    """
    config, trained = resolve_model(model, base, dtype)
    missing = model_problems(model, config, trained, base)
    if missing:
        raise ConfigError(missing)
    report(Progress(phase="start", done=0, total=1))
    seed_process(seed)
    items = read_prompts(prompts)
    ranker = open_ranker(settings, prompts.source, places, report)
    known: dict[str, Any] = {
        "model": {
            **model_identity(config, loading.identity(config)),
            **({} if trained is None else {"adapter": weights_fingerprint(trained)}),
        },
        "prompts": prompts_identity(prompts),
    }
    loaded, processor = loading.load(config, trained=trained)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    sampled = SampledModel(
        model=loaded,
        processor=processor,
        weights=weights_id(config, trained),
        bf16=dtype == "bf16",
        batch_size=batch_size,
    )
    return make_pairs(
        sampled,
        items,
        settings,
        ranker,
        seed=seed,
        folder=folder,
        model_facts=known,
        report=report,
    )
