"""Group work into kinds that take equally long per step, answer and sample.

A kind is a hash of everything that determines the time. It excludes seeds, learning rates, weights
of active terms, numeric settings of rejected images and the length of a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chip_core.config.identity import fingerprint
from chip_core.config.trial import BenchmarkConfig, TrialConfig
from chip_core.reference_cache.spec import CacheSpec
from chip_core.utils import registry

#: Where a step's reference comes from, as recorded in a trial's `engine.reference`.
LIVE, PARTLY, STORED = "live", "partly stored", "stored"

#: Keys of `engine` that do not affect the time of a step.
_IGNORED_ENGINE_KEYS = {
    "log_every",
    "checkpoint_every",
    "generation_batch",
    "retries",
    "stall_after",
}
#: Keys of `engine` that affect the time of a start and of an answer.
_MODEL_ENGINE_KEYS = {"device", "threads", "gpus_per_worker", "cpus_per_worker", "attention"}
#: Strategies whose settings affect the time per image.
_SETTINGS_STRATEGIES = {"inpaint"}


def reference_kind(config: TrialConfig, caches: Sequence[CacheSpec]) -> str:
    """Return where a trial's reference comes from, given the stores that it may read.

    Args:
        config: the trial.
        caches: stores that are there, or are made before it.
    """
    stored = [
        any(quantity in spec.reads.get(view, ()) for spec in caches)
        for view, quantities in config.objective.reference_reads.items()
        for quantity in quantities
    ]
    if all(stored):
        return STORED
    return PARTLY if any(stored) else LIVE


def start_kind(config: TrialConfig) -> str:
    """Return the kind of a trial's start: its imports and the loading of its model."""
    return _hash_kind(
        "start", model=_model_key(config), engine=_engine_key(config, _MODEL_ENGINE_KEYS)
    )


def row_kind(config: TrialConfig) -> str:
    """Return the kind of the data whose rows are checked."""
    return _hash_kind("row", data=_data_key(config))


def training_kind(config: TrialConfig, reference: str, *, features: bool) -> str:
    """Return the kind of a training.

    Args:
        config: the trial.
        reference: of `reference_kind`.
        features: whether a frozen vision tower's output is read, and not computed.
    """
    objective = config.objective.model_dump(mode="json")
    for name in ("preset", "terms", "weights", "betas", "beta", "custom", "method"):
        objective.pop(name, None)
    if config.objective.method_name is not None:
        objective["preset"] = config.objective.method_name
    engine = config.engine.model_dump(mode="json")
    if engine["compile"] == "off":
        del engine["compile"]  # so that older recorded timings keep their kind
    return _hash_kind(
        "training",
        model=_model_key(config),
        data=_data_key(config),
        objective=objective,
        terms=sorted(config.objective.active_terms),
        custom=list(config.objective.active_custom),
        rejected_image=_rejected_image_key(config)
        if config.objective.needs_rejected_image
        else None,
        parts=[config.vision_encoder, config.projector],
        staged=config.staged.model_dump() if config.vision_encoder == "staged" else None,
        precision=config.reference_precision if config.objective.needs_divergence else None,
        batch=[config.training.batch_size, config.training.max_length],
        engine={key: value for key, value in engine.items() if key not in _IGNORED_ENGINE_KEYS},
        reference=[reference, features],
    )


def answer_kind(config: TrialConfig, settings: BenchmarkConfig) -> str:
    """Return the kind of a benchmark's answers.

    Args:
        config: the trial.
        settings: the benchmark's.
    """
    benchmark = settings.model_dump(mode="json")
    benchmark.pop("limit")
    return _hash_kind(
        "answer",
        model=_model_key(config),
        benchmark=benchmark,
        engine=_engine_key(config, _MODEL_ENGINE_KEYS | {"generation_batch"}),
    )


def sampling_kind(config: TrialConfig) -> str:
    """Return the kind of the answers that are sampled to be pairs."""
    settings = config.pairs.model_dump(mode="json")
    return _hash_kind(
        "sampling",
        model=_model_key(config),
        data=_data_key(config),
        pairs={name: settings[name] for name in ("answers", "top_p", "max_new_tokens", "ranker")},
        engine=_engine_key(config, _MODEL_ENGINE_KEYS | {"generation_batch"}),
    )


def score_kind(settings: BenchmarkConfig) -> str:
    """Return the kind of a benchmark's scoring, whatever model answered.

    Args:
        settings: the benchmark's.
    """
    benchmark = settings.model_dump(mode="json")
    for name in ("limit", "max_new_tokens", "num_beams"):
        benchmark.pop(name)
    return _hash_kind("score", benchmark=benchmark)


def cache_build_kind(config: TrialConfig, group: Sequence[CacheSpec]) -> str:
    """Return the kind of passes that are made together.

    Args:
        config: that they are made with.
        group: the passes.
    """
    uses_rejected_image = any(spec.is_rejected_image for spec in group)
    return _hash_kind(
        "pass",
        model=_model_key(config),
        data=_data_key(config),
        passes=sorted([spec.kind, spec.hidden] for spec in group),
        rejected_image=_rejected_image_key(config) if uses_rejected_image else None,
        length=config.training.max_length,
        engine=_engine_key(config, _MODEL_ENGINE_KEYS | {"prefix_sharing", "logits_chunk"}),
    )


def _model_key(config: TrialConfig) -> dict[str, Any]:
    parts = ("vision_encoder", "projector")
    adapted_parts = [part for part in parts if getattr(config, part) == "lora"]
    model = config.model.model_dump(mode="json")
    if model["quantize"] == "none":
        del model["quantize"]
    return {
        **model,
        "language_model": config.language_model,
        "lora": config.lora.model_dump(mode="json") if config.has_adapters else None,
        # Omitted if empty, so that older recorded timings keep their kind.
        **({"adapted": adapted_parts} if adapted_parts else {}),
    }


def _data_key(config: TrialConfig) -> dict[str, Any]:
    data = config.data.model_dump(mode="json")
    for name in ("limit", "transparency"):
        del data[name]
    return data


def _engine_key(config: TrialConfig, names: set[str]) -> dict[str, Any]:
    return {name: getattr(config.engine, name) for name in sorted(names)}


def _rejected_image_key(config: TrialConfig) -> dict[str, Any]:
    image = config.rejected_image
    depends_on_settings = image.strategy in _SETTINGS_STRATEGIES or registry.is_plugin(
        image.strategy
    )
    settings = image.settings.model_dump(mode="json") if depends_on_settings else None
    return {"strategy": image.strategy, "redraw": image.redraw, "settings": settings}


def _hash_kind(work: str, **parts: Any) -> str:
    return fingerprint({"of": work, **parts})[:32]
