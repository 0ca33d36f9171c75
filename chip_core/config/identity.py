"""Find the keys of a configuration that decide a trial's figures, and compute the fingerprint.

A key can be without effect because of another ("segment weight under dpo"): it is inert, and cells
that only differ in inert keys are one trial.
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
from chip_core.data.rejected_images import strategy_class
from chip_core.objectives.config import TERMS
from chip_core.utils import plugins

#: The values of every training before these keys existed.
_PLAIN_TRAINING = {
    "label_rule": "clean",
    "augment": "off",
    "master": "fp32",
    "gradients": "fp32",
    "score_at": [],
}

#: The values of every optimizer before these keys existed.
_PLAIN_OPTIMIZER = {"states": "fp32"}

#: Checking with pydantic whether these are sections takes most of a large plan's time.
_PLAIN = frozenset({str, int, float, bool, type(None)})


def inert_keys(config: TrialConfig) -> dict[str, str]:
    """Return key path -> why it has no effect; a path stands for everything below it."""
    reasons: dict[str, str] = {}
    if config.data.source == "shapes":
        for key in ("split", "revision", "format", "transparency", "on_bad_row"):
            reasons[f"data.{key}"] = "data.source is shapes"
    if config.pairs.rounds == 0:
        reasons["pairs"] = "pairs.rounds is 0"
    objective, of_objective = _inert_of_objective(config)
    reasons |= of_objective
    reasons |= _why_one_reference(config, objective)
    if config.language_model != "lora":
        # The other parts have adapters on all of their layers, with the same rank and scale.
        key = "lora.targets" if config.adapted else "lora"
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
    if not plugins.is_plugin(strategy):
        reasons["rejected_image.parameters"] = f"rejected_image is {strategy}"
    if not strategy_class(strategy).traits.random:
        reasons["rejected_image.corruption_seed"] = f"{strategy} draws nothing at random"
        reasons["rejected_image.redraw"] = f"{strategy} draws nothing at random"
    return reasons


def _inert_of_objective(config: TrialConfig) -> tuple[str, dict[str, str]]:
    """Return the objective's name, and its keys without effect, with the reason of each."""
    own, inert = config.objective, dict[str, str]()
    active = own.active_terms
    objective = (
        f"objective {own.preset}"
        if own.terms is None
        else f"objective terms {', '.join(own.terms)}"
    )
    for term in TERMS:
        if term in active:
            continue
        settings = [f"weights.{term}", f"betas.{term}"]
        # A user's own term may read what has changed.
        kept = {"segment": not own.active_custom, "token": True, "anchor": True}
        settings += [term] if kept.get(term) else []
        for key in settings:
            inert[f"objective.{key}"] = f"{objective} has no {term} term"
    if own.method_name is None:
        inert["objective.method"] = f"{objective} is a sum of terms"
    else:
        for key in own.inert_settings:
            inert[f"objective.method.{key}"] = f"{objective} has no {key}"
    if own.form == "released":
        inert["objective.segment.scope"] = "form released always compares whole sequences"
    return objective, inert


def _why_one_reference(config: TrialConfig, objective: str) -> dict[str, str]:
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
    inert = inert_keys(config)
    kept = _figures(config, inert, "")
    del kept["benchmarks"], kept["evaluation"]
    # Replaced by the active terms, however preset and terms were written.
    del kept["objective"]["preset"], kept["objective"]["terms"]
    kept["objective"]["terms"] = list(config.objective.active_terms)
    method = config.objective.resolved_method
    if method is not None:
        name = "sequence losses" if "losses" in method.settings else config.objective.method_name
        kept["objective"]["method"] = {"name": name, **method.settings}
    kept["objective"]["custom"] = {
        name: [config.objective.custom[name], plugins.source_hash(name)]
        for name in config.objective.active_custom
    }
    if plugins.is_plugin(config.pairs.ranker) and "pairs" in kept:
        kept["pairs"]["source"] = plugins.source_hash(config.pairs.ranker)
    kept["model"] = model_identity(config.model, model)
    for section, plain in (("training", _PLAIN_TRAINING), ("optimizer", _PLAIN_OPTIMIZER)):
        for name, value in plain.items():
            # So that earlier results keep their fingerprint.
            if kept[section][name] == value:
                del kept[section][name]
    if "rejected_image" in kept:
        kept["rejected_image"].update(_rejected_image(config))
    kept["data"] = _data(config, data, inert)
    # Storing it changes nothing, and fp32 is the precision of its computation: only rounding
    # counts.
    if kept.pop("reference_cache", "fp32") == "bf16":
        kept["reference"] = "bf16"
    return {"kind": "training", "behaviour": BEHAVIOUR, **kept}


def data_identity(config: TrialConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides the set of pairs.

    Args:
        config: the trial.
        data: the data's own identity (chip_core.data.identity).
    """
    return _data(config, data, inert_keys(config))


def rejected_image_identity(config: TrialConfig, epoch: int | None) -> dict[str, Any]:
    """Return everything that decides an epoch's rejected images, with the seed instead of its rule.

    Args:
        config: the trial.
        epoch: counted from 0; None if they are the same in every epoch.
    """
    inert = inert_keys(config)
    kept = _figures(config.rejected_image, inert, "rejected_image.") | _rejected_image(config)
    kept.pop("redraw", None)
    if kept.pop("corruption_seed", "shared") == "per_trial":
        kept["seed"] = config.seed
    return kept if epoch is None else {**kept, "epoch": epoch}


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
    held = {"weights": "bf16"} if config.dtype == "bf16" else {}
    if config.quantize != "none":
        held["quantize"] = config.quantize
    return {"dtype": config.dtype, **held, **model}


def evaluation_identity(
    side: str,
    benchmark: BenchmarkConfig,
    content: Mapping[str, Any],
    answering: EvaluationConfig,
) -> dict[str, Any]:
    """Return everything that decides a trained model's figures on a benchmark.

    Args:
        side: "select" or "report".
        benchmark: its settings.
        content: its own identity (chip_core.evaluation.items.identity), with the decoding that
            results from the settings.
        answering: which engine answers.
    """
    resolved = dict.fromkeys(("max_new_tokens", "num_beams"), "in the decoding")
    if benchmark.half is None:
        resolved |= dict.fromkeys(("half", "half_seed"), "it is asked whole")
    if benchmark.judge is not None and not benchmark.judge.send:
        resolved["judge.send"] = "it says nothing"  # and earlier builds had no such key
    figures = _figures(benchmark, resolved, "")
    # Earlier versions had no engine but transformers.
    engine = {} if answering.own else {"evaluation": _figures(answering, {}, "")}
    return {"behaviour": BEHAVIOUR, "side": side, **figures, **content, **engine}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the sha256 of an identity, as 64 hex digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _data(config: TrialConfig, data: Mapping[str, Any], inert: Mapping[str, str]) -> dict[str, Any]:
    kept = _figures(config.data, inert, "data.")
    # Content instead of location; it includes revision and format where they have an effect.
    named = {"source", "revision", "format"}
    if kept.get("transparency") == "drop":
        # So that earlier results keep their fingerprint.
        named.add("transparency")
    return {**{key: value for key, value in kept.items() if key not in named}, **data}


def _rejected_image(config: TrialConfig) -> dict[str, Any]:
    """Return the strategy's identity of its settings, and the source hash of a user's own code."""
    name, settings = config.rejected_image.strategy, config.rejected_image.settings
    strategy = strategy_class(name)
    if plugins.is_plugin(name):
        source = plugins.source_hash(name)
        return {"parameters": strategy.identity(settings), "source": source}
    return {} if isinstance(settings, NoParameters) else {name: strategy.identity(settings)}


def _figures(node: BaseModel, inert: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """Return the fields of a section that change figures, as plain data."""
    kept: dict[str, Any] = {}
    for name in _names(type(node)):
        path = f"{prefix}{name}"
        if path not in inert:
            value = getattr(node, name)
            kept[name] = value if type(value) in _PLAIN else _plain(value, inert, f"{path}.")
    return kept


@functools.cache
def _names(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the names of a section's fields that can change figures."""
    names = []
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict) and "fingerprint" in extra, f"{name} is not declared"
        if extra["fingerprint"] == "in":
            names.append(name)
    return tuple(names)


def _plain(value: Any, inert: Mapping[str, str], prefix: str) -> Any:
    if isinstance(value, BaseModel):
        return _figures(value, inert, prefix)
    if isinstance(value, tuple):
        return [entry if type(entry) in _PLAIN else _plain(entry, inert, prefix) for entry in value]
    return value
