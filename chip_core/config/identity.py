"""Find the keys of a configuration that decide a trial's figures, and compute the fingerprint.

Another key can make a key ineffective ("segment weight under dpo"). Such a key is inert, and cells
that differ only in inert keys are one trial.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from chip_core.config.strategies import STRATEGIES, NoParameters
from chip_core.config.trial import (
    BEHAVIOUR,
    BenchmarkConfig,
    EvaluationConfig,
    ModelConfig,
    TrialConfig,
)
from chip_core.data.rejected_images import find_strategy
from chip_core.objectives.config import TERMS
from chip_core.utils import registry

#: The values of every training before these keys existed.
_LEGACY_TRAINING_DEFAULTS = {
    "label_rule": "clean",
    "augment": "off",
    "master": "fp32",
    "gradients": "fp32",
    "score_at": [],
}

#: The values of every optimizer before these keys existed.
_LEGACY_OPTIMIZER_DEFAULTS = {"states": "fp32"}

#: Checking with pydantic whether these are sections takes most of a large plan's time.
_SCALAR_TYPES = frozenset({str, int, float, bool, type(None)})


def find_inert_keys(config: TrialConfig) -> dict[str, str]:
    """Return key path -> why it has no effect; a path stands for everything below it."""
    reasons: dict[str, str] = {}
    if config.data.source == "shapes":
        for key in ("split", "revision", "format", "transparency", "on_bad_row"):
            reasons[f"data.{key}"] = "data.source is shapes"
    if config.pairs.rounds == 0:
        reasons["pairs"] = "pairs.rounds is 0"
    objective, objective_reasons = _find_inert_objective_keys(config)
    reasons |= objective_reasons
    reasons |= _reference_cache_reasons(config, objective)
    if config.language_model != "lora":
        # The other parts have adapters on all of their layers, with the same rank and scale.
        key = "lora.targets" if config.has_adapters else "lora"
        reasons[key] = f"language_model is {config.language_model}"
    if not config.training.score_at:
        reasons["training.pick"] = "training.score_at is empty"
    if config.vision_encoder != "staged":
        reasons["staged"] = f"vision_encoder is {config.vision_encoder}"
    if config.vision_encoder == "frozen":
        reasons["optimizer.vision_lr"] = "vision_encoder is frozen"
    if config.projector == "frozen":
        reasons["optimizer.projector_lr"] = "projector is frozen"
    if not config.objective.needs_rejected_image:
        reasons["rejected_image"] = f"{objective} has no visual term"
        return reasons
    strategy = config.rejected_image.strategy
    for name, section in STRATEGIES.items():
        if name != strategy and section is not NoParameters:
            reasons[f"rejected_image.{name}"] = f"rejected_image is {strategy}"
    if not registry.is_plugin(strategy):
        reasons["rejected_image.parameters"] = f"rejected_image is {strategy}"
    if not find_strategy(strategy).traits.random:
        reasons["rejected_image.corruption_seed"] = f"{strategy} is not random"
        reasons["rejected_image.redraw"] = f"{strategy} is not random"
    return reasons


def _find_inert_objective_keys(config: TrialConfig) -> tuple[str, dict[str, str]]:
    """Return the objective's name, and its keys without effect, with the reason of each."""
    objective, inert = config.objective, dict[str, str]()
    active = objective.active_terms
    label = (
        f"objective {objective.preset}"
        if objective.terms is None
        else f"objective terms {', '.join(objective.terms)}"
    )
    for term in TERMS:
        if term in active:
            continue
        settings = [f"weights.{term}", f"betas.{term}"]
        # A user's own term may read what has changed.
        has_section = {"segment": not objective.active_custom, "token": True, "anchor": True}
        settings += [term] if has_section.get(term) else []
        for key in settings:
            inert[f"objective.{key}"] = f"{label} has no {term} term"
    if objective.method_name is None:
        inert["objective.method"] = f"{label} is a sum of terms"
    else:
        for key in objective.inert_settings:
            inert[f"objective.method.{key}"] = f"{label} has no {key}"
    if objective.form == "released":
        inert["objective.segment.scope"] = "form released always compares whole sequences"
    return label, inert


def _reference_cache_reasons(config: TrialConfig, objective: str) -> dict[str, str]:
    """Return, by its key, why the precision of the reference's hidden states has no effect."""
    if not config.objective.needs_divergence:
        return {"reference_cache": f"{objective} has no token term"}
    if config.model.dtype == "bf16":
        return {"reference_cache": "model.dtype is bf16, and so are the reference's hidden states"}
    return {}


def training_identity(
    config: TrialConfig, model: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that decides the trained model, without inert keys.

    Args:
        config: the trial.
        model: the model's own identity (chip_core.models.loading.identity).
        data: the data's own identity (chip_core.data.identity).
    """
    inert = find_inert_keys(config)
    identity = _hashed_fields(config, inert, "")
    del identity["benchmarks"], identity["evaluation"]
    # Replaced by the active terms, however preset and terms were written.
    del identity["objective"]["preset"], identity["objective"]["terms"]
    identity["objective"]["terms"] = list(config.objective.active_terms)
    method = config.objective.resolved_method
    if method is not None:
        name = "sequence losses" if "losses" in method.settings else config.objective.method_name
        identity["objective"]["method"] = {"name": name, **method.settings}
    identity["objective"]["custom"] = {
        name: [config.objective.custom[name], registry.source_hash(name)]
        for name in config.objective.active_custom
    }
    if registry.is_plugin(config.pairs.ranker) and "pairs" in identity:
        identity["pairs"]["source"] = registry.source_hash(config.pairs.ranker)
    identity["model"] = model_identity(config.model, model)
    for section, defaults in (
        ("training", _LEGACY_TRAINING_DEFAULTS),
        ("optimizer", _LEGACY_OPTIMIZER_DEFAULTS),
    ):
        for name, value in defaults.items():
            # So that earlier results keep their fingerprint.
            if identity[section][name] == value:
                del identity[section][name]
    if "rejected_image" in identity:
        identity["rejected_image"].update(_strategy_identity(config))
    identity["data"] = _data_fields(config, data, inert)
    # Storing it changes nothing, and fp32 is the precision of its computation: only rounding
    # counts.
    if identity.pop("reference_cache", "fp32") == "bf16":
        identity["reference"] = "bf16"
    return {"kind": "training", "behaviour": BEHAVIOUR, **identity}


def data_identity(config: TrialConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides the set of pairs.

    Args:
        config: the trial.
        data: the data's own identity (chip_core.data.identity).
    """
    return _data_fields(config, data, find_inert_keys(config))


def rejected_image_identity(config: TrialConfig, epoch: int | None) -> dict[str, Any]:
    """Return everything that decides an epoch's rejected images, with the seed instead of its rule.

    Args:
        config: the trial.
        epoch: counted from 0; None if they are the same in every epoch.
    """
    inert = find_inert_keys(config)
    identity = _hashed_fields(config.rejected_image, inert, "rejected_image.") | _strategy_identity(
        config
    )
    identity.pop("redraw", None)
    if identity.pop("corruption_seed", "shared") == "per_trial":
        identity["seed"] = config.seed
    return identity if epoch is None else {**identity, "epoch": epoch}


def untrained_identity(config: ModelConfig, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides the untrained model's answers."""
    return {"kind": "base", "behaviour": BEHAVIOUR, "model": model_identity(config, model)}


def model_identity(config: ModelConfig, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides what a model computes: its weights, and their precision.

    Args:
        config: the model.
        model: its own identity (chip_core.models.loading.identity).
    """
    # Weights used to be fp32 whatever the precision of the computation: those figures differ.
    weights_format = {"weights": "bf16"} if config.dtype == "bf16" else {}
    if config.quantize != "none":
        weights_format["quantize"] = config.quantize
    return {"dtype": config.dtype, **weights_format, **model}


def evaluation_identity(
    side: str,
    benchmark: BenchmarkConfig,
    content: Mapping[str, Any],
    evaluation: EvaluationConfig,
) -> dict[str, Any]:
    """Return everything that decides a trained model's figures on a benchmark.

    Args:
        side: "select" or "report".
        benchmark: its settings.
        content: its own identity (`chip_core.evaluation.items.benchmark_identity`), with the
            decoding that results from the settings.
        evaluation: which engine answers.
    """
    inert = dict.fromkeys(("max_new_tokens", "num_beams"), "in the decoding")
    if benchmark.half is None:
        inert |= dict.fromkeys(("half", "half_seed"), "the whole benchmark is asked")
    if benchmark.judge is not None and not benchmark.judge.send:
        inert["judge.send"] = "it has no effect"  # and earlier builds had no such key
    figures = _hashed_fields(benchmark, inert, "")
    # Earlier versions had no engine but transformers.
    engine = {} if evaluation.in_process else {"evaluation": _hashed_fields(evaluation, {}, "")}
    return {"behaviour": BEHAVIOUR, "side": side, **figures, **content, **engine}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the sha256 of an identity, as 64 hex digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _data_fields(
    config: TrialConfig, data: Mapping[str, Any], inert: Mapping[str, str]
) -> dict[str, Any]:
    fields = _hashed_fields(config.data, inert, "data.")
    # Content instead of location; it includes revision and format where they have an effect.
    replaced = {"source", "revision", "format"}
    if fields.get("transparency") == "drop":
        # So that earlier results keep their fingerprint.
        replaced.add("transparency")
    return {**{key: value for key, value in fields.items() if key not in replaced}, **data}


def _strategy_identity(config: TrialConfig) -> dict[str, Any]:
    """Return the strategy's identity of its settings, and the source hash of a user's own code."""
    name, settings = config.rejected_image.strategy, config.rejected_image.settings
    strategy = find_strategy(name)
    if registry.is_plugin(name):
        source = registry.source_hash(name)
        return {"parameters": strategy.identity(settings), "source": source}
    return {} if isinstance(settings, NoParameters) else {name: strategy.identity(settings)}


def _hashed_fields(node: BaseModel, inert: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """Return the fields of a section that change figures, as plain data."""
    fields: dict[str, Any] = {}
    for name in _hashed_names(type(node)):
        path = f"{prefix}{name}"
        if path not in inert:
            value = getattr(node, name)
            fields[name] = (
                value if type(value) in _SCALAR_TYPES else _to_plain(value, inert, f"{path}.")
            )
    return fields


@functools.cache
def _hashed_names(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of a section's fields that can change figures."""
    names = []
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict) and "fingerprint" in extra, f"{name} is not declared"
        if extra["fingerprint"] == "in":
            names.append(name)
    return tuple(names)


def _to_plain(value: Any, inert: Mapping[str, str], prefix: str) -> Any:
    if isinstance(value, BaseModel):
        return _hashed_fields(value, inert, prefix)
    if isinstance(value, tuple):
        return [
            entry if type(entry) in _SCALAR_TYPES else _to_plain(entry, inert, prefix)
            for entry in value
        ]
    return value
