"""List a trial's reference passes, and define the identity of each.

A pass is the reference's run over all samples of the data. Trials whose passes have the same
identity share its store, whatever their objective, seed, learning rate or micro-batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from chip_core.config.identity import (
    data_identity,
    fingerprint,
    model_identity,
    rejected_image_identity,
)
from chip_core.config.trial import BEHAVIOUR, TrialConfig
from chip_core.data.formats.extra_columns import row_requirements
from chip_core.data.rejected_images import find_strategy
from chip_core.models.loading import has_projector_in_tower
from chip_core.objectives.parts import VIEWS, Quantity, Reads
from chip_core.reference_cache.folder import FORMAT

#: What a pass holds of each sample.
#: text: each token's log-probability of chosen and rejected response under the image, and the
#: hidden states that predict them if a term needs the divergence.
#: rejected_image: each token's log-probability of the chosen response under the rejected image.
#: features, rejected_image_features: a frozen vision tower's output for the image, and for the
#: rejected one.
#: view: one quantity (`quantity`) of each token of one further view (`view`), as presets read it.
PassKind = Literal["text", "features", "rejected_image", "rejected_image_features", "view"]

PASS_KINDS: tuple[PassKind, ...] = get_args(PassKind)


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """One pass over all samples."""

    kind: PassKind
    epoch: int | None  # of the training that it is for; None: every epoch
    identity: Mapping[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """The hash of its identity, 64 hex digits."""
        return fingerprint(self.identity)

    @property
    def hidden(self) -> Literal["fp32", "bf16"] | None:
        """The precision of its hidden states; None if it has none."""
        precision: Literal["fp32", "bf16"] | None = self.identity.get("hidden")
        return precision

    @property
    def is_features(self) -> bool:
        """Whether it only holds the vision tower's output."""
        return self.kind in ("features", "rejected_image_features")

    @property
    def is_rejected_image(self) -> bool:
        """Whether it reads the rejected images."""
        return (
            self.kind in ("rejected_image", "rejected_image_features")
            or VIEWS[self.view][0] == "rejected_image"
        )

    @property
    def view(self) -> str:
        """The view of its tokens; `chosen` if it has several, or holds images."""
        if self.kind == "view":
            return str(self.identity["view"])
        return "rejected_image" if self.kind == "rejected_image" else "chosen"

    @property
    def reads(self) -> Reads:
        """The quantities that it holds of each view; none if it holds images."""
        logps: frozenset[Quantity] = frozenset(["logps"])
        if self.kind == "view":
            return {self.view: frozenset([self.identity["quantity"]])}
        if self.kind == "rejected_image":
            return {"rejected_image": logps}
        return {"rejected": logps, "chosen": logps} if self.kind == "text" else {}

    @property
    def name(self) -> str:
        """Its name in messages."""
        if self.kind == "text":
            return "text" if self.hidden is None else f"text, hidden states in {self.hidden}"
        if self.kind == "features":
            return "image features"
        if self.kind == "view":
            label = f"{self.view.replace('_', ' ')}, {self.identity['quantity'].replace('_', ' ')}"
            if not self.is_rejected_image:
                return label
            return f"{label}, rejected image {self.identity['rejected_image']['strategy']}"
        image = self.identity["rejected_image"]
        label = f"{'features of ' if self.is_features else ''}rejected image {image['strategy']}"
        draw_settings = [f"{key} {image[key]}" for key in ("epoch", "seed") if key in image]
        return ", ".join([label, *draw_settings])


@dataclass(frozen=True, kw_only=True)
class AvailableCaches:
    """The stores that a trial may read."""

    cache: Path  # the folder of the stores
    passes: tuple[CacheSpec, ...]

    def covers(self, config: TrialConfig) -> bool:
        """Return whether a trial that reads all stores computes nothing of the reference."""
        for view, quantities in config.objective.reference_reads.items():
            is_rejected = VIEWS[view][0] == "rejected_image"
            for quantity in quantities:
                epochs = {
                    spec.epoch for spec in self.passes if quantity in spec.reads.get(view, ())
                }
                if None not in epochs and not (
                    is_rejected and epochs >= set(range(config.training.epochs))
                ):
                    return False
        return True


@dataclass(frozen=True, kw_only=True)
class BuildShard:
    """A share of passes that are computed together, for one worker."""

    passes: tuple[CacheSpec, ...]
    cache: Path
    number: int  # counted from 0
    of: int


def list_cache_specs(
    config: TrialConfig, model: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[CacheSpec, ...]:
    """Return the passes that a trial reads; it may have none.

    Args:
        config: the trial.
        model: the model's own identity (chip_core.models.loading.identity).
        data: the data's own identity (chip_core.data.identity).
    """
    if config.pairs.rounds:
        return ()  # it makes its own pairs during the trial
    if config.training.augment != "off":
        return ()  # every epoch of every seed has other images, so none is read twice
    engine, image = config.engine, config.rejected_image
    traits = find_strategy(image.strategy).traits
    visual = config.objective.needs_rejected_image
    # If rows without their own rejected image are skipped, the pairs are others.
    row_filter: dict[str, Any] = {"given": True} if visual and traits.needs_given else {}
    required_columns = row_requirements(config.objective).names
    row_filter |= {"asked": required_columns} if required_columns else {}
    common = {
        "format": FORMAT,
        "behaviour": BEHAVIOUR,
        "model": model_identity(config.model, model),
        "data": data_identity(config, data)
        | (row_filter if config.data.on_bad_row == "skip" else {}),
    }
    # Settings that change rounding.
    tower_engine = {"attention": engine.attention, "threads": engine.threads}
    decoder_engine: dict[str, Any] = {**tower_engine, "prefix_sharing": engine.prefix_sharing}
    if engine.compile != "off":
        decoder_engine["compile"] = engine.compile
    text_identity = {**common, "max_length": config.training.max_length, "engine": decoder_engine}
    if config.training.label_rule != "clean":
        text_identity["label_rule"] = config.training.label_rule
    tower_identity = {**common, "engine": tower_engine}
    hidden = config.reference_precision if config.objective.needs_divergence else None
    reads = config.objective.reference_reads
    passes: list[tuple[PassKind, int | None, dict[str, Any]]] = []
    if any("logps" in reads.get(view, ()) for view in ("chosen", "rejected")):
        passes.append(("text", None, {**text_identity, "hidden": hidden}))
    passes += [
        ("view", None, {**text_identity, **view_key})
        for view_key in _view_passes(config, rejected_images=False)
    ]
    features = _stores_features(config)
    if features:
        passes.append(("features", None, tower_identity))
    if visual:
        redraws = traits.random and image.redraw == "each_epoch"
        for epoch in range(config.training.epochs) if redraws else [None]:
            rejected_image = {"rejected_image": rejected_image_identity(config, epoch)}
            if "logps" in reads.get("rejected_image", ()):
                passes.append(("rejected_image", epoch, {**text_identity, **rejected_image}))
            passes += [
                ("view", epoch, {**text_identity, **rejected_image, **view_key})
                for view_key in _view_passes(config, rejected_images=True)
            ]
            if features:
                passes.append(
                    ("rejected_image_features", epoch, {**tower_identity, **rejected_image})
                )
    return tuple(
        CacheSpec(kind=kind, epoch=epoch, identity={"kind": kind, **identity})
        for kind, epoch, identity in passes
    )


def _view_passes(config: TrialConfig, *, rejected_images: bool) -> list[dict[str, Any]]:
    """Return the views and quantities of further passes, beyond text and rejected images.

    Args:
        config: the trial.
        rejected_images: whether under the rejected images, or under all others.
    """
    return [
        {"view": view, "quantity": quantity}
        for view, quantities in config.objective.reference_reads.items()
        for quantity in sorted(quantities)
        if (VIEWS[view][0] == "rejected_image") == rejected_images
        and not (quantity == "logps" and view in ("chosen", "rejected", "rejected_image"))
    ]


def _stores_features(config: TrialConfig) -> bool:
    """Return whether to store the output of the vision tower, which must be frozen."""
    engine = config.engine
    if config.vision_encoder != "frozen" or engine.feature_cache == "off":
        return False
    trains_in_tower = config.projector != "frozen" and has_projector_in_tower(config.model)
    if engine.feature_cache == "auto" and trains_in_tower:
        return False  # training within the tower changes its output
    return engine.feature_cache == "on" or not engine.uses_gpu


def with_hidden(spec: CacheSpec, precision: Literal["fp32", "bf16"]) -> CacheSpec:
    """Return a text pass with another one's content and hidden states."""
    identity = {**spec.identity, "hidden": precision}
    return CacheSpec(kind=spec.kind, epoch=spec.epoch, identity=identity)


def group_specs(passes: Sequence[CacheSpec]) -> list[tuple[CacheSpec, ...]]:
    """Return passes in groups that are computed together, so that samples are prepared once.

    A group has the same pairs, and at most one draw of rejected images.
    """
    groups: list[list[CacheSpec]] = []
    for spec in passes:
        for group in groups:
            if all(_is_compatible(spec, other) for other in group):
                group.append(spec)
                break
        else:
            groups.append([spec])
    return [tuple(group) for group in groups]


def _is_compatible(spec: CacheSpec, other: CacheSpec) -> bool:
    """Return whether two passes agree in everything that both of them have."""
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (spec.identity, other.identity),
        (spec.identity["engine"], other.identity["engine"]),
    ]
    ignored_keys = {"kind", "hidden", "engine", "view", "quantity"}
    return all(
        first[key] == second[key]
        for first, second in pairs
        for key in (set(first) & set(second)) - ignored_keys
    )


def build_config(group: Sequence[tuple[CacheSpec, TrialConfig]]) -> TrialConfig:
    """Return a configuration to compute a group of passes with.

    Args:
        group: the passes, each with the configuration of a trial that has it.
    """
    config = next((config for spec, config in group if not spec.is_features), group[0][1])
    tower_configs = (config for spec, config in group if spec.is_features)
    view_configs = (config for spec, config in group if spec.kind == "view")
    rejected_image_configs = (config for spec, config in group if spec.is_rejected_image)
    for other, names in (
        (next(tower_configs, None), ("vision_encoder", "projector")),
        (next(view_configs, None), ("objective",)),
        (next(rejected_image_configs, None), ("objective", "rejected_image", "seed")),
    ):
        if other is not None:
            config = config.model_copy(update={name: getattr(other, name) for name in names})
    return config


def count_samples_read(spec: CacheSpec, config: TrialConfig, samples: int) -> int:
    """Return the number of reads of a pass's samples by a trial, over all samples.

    Args:
        spec: a pass of the trial.
        config: the trial.
        samples: how many pairs the data has.
    """
    settings = config.training
    steps_per_epoch = samples // settings.batch_size
    steps = steps_per_epoch * settings.epochs
    if settings.max_steps is not None:
        steps = min(steps, settings.max_steps)
    if spec.epoch is not None:
        steps = min(max(steps - spec.epoch * steps_per_epoch, 0), steps_per_epoch)
    return steps * settings.batch_size


def count_epochs(config: TrialConfig, samples: int) -> int:
    """Return how many epochs a trial begins."""
    steps_per_epoch = samples // config.training.batch_size
    if config.training.max_steps is None or steps_per_epoch == 0:
        return config.training.epochs
    return min(config.training.epochs, math.ceil(config.training.max_steps / steps_per_epoch))
