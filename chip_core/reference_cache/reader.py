"""Read reference caches: a training's reference and its images' features.

A store that is missing, broken or another model's is not used: its values are computed in the step
instead, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import PreferencePair
from chip_core.data.tensors import PairBatch, Prompts, Responses, to_device
from chip_core.models.loading import has_weights
from chip_core.models.parts import is_tower_frozen, select_trained_parameters
from chip_core.objectives.parts import VIEWS, Quantity, Reads
from chip_core.objectives.scores import OutputHead, ReferenceScores, ResponseReference
from chip_core.reference_cache.finish import HEAD_FILE
from chip_core.reference_cache.folder import BrokenStoreError, store_folder
from chip_core.reference_cache.rows import column_field
from chip_core.reference_cache.shards import OpenedStore
from chip_core.reference_cache.spec import AvailableCaches, CacheSpec, count_epochs
from chip_core.training.policy import (
    LiveReferenceSource,
    Policy,
    ReferenceSource,
    TrainingReference,
    scatter_tokens,
)
from chip_core.training.states import ResponseStates
from chip_core.utils.errors import TrialError, first_line
from chip_core.utils.workers import Workers


@dataclass(frozen=True)
class CacheReader:
    """Open the reference caches that a training may read."""

    available: AvailableCaches

    def open(
        self,
        policy: Policy,
        config: TrialConfig,
        *,
        processor: Any,
        pairs: Sequence[PreferencePair],
        workers: Workers,
    ) -> OpenedStores:
        """Open the caches for a training; see `open_stores`."""
        return open_stores(
            self.available, policy, config, processor=processor, pairs=pairs, workers=workers
        )


def open_stores(
    available: AvailableCaches,
    policy: Policy,
    config: TrialConfig,
    *,
    processor: Any,
    pairs: Sequence[PreferencePair],
    workers: Workers | None = None,
) -> OpenedStores:
    """Open and spot-check the stores that a training may read, before its first step.

    If one worker cannot use a store, no worker does, so that all compute the same things.

    Args:
        available: the stores that may be read.
        policy: the model to train, before training; not sharded yet.
        config: the trial.
        processor: the model's.
        pairs: the preference pairs.
        workers: the workers of the training; None: only this process.
    """
    workers = workers or Workers()
    stores: list[tuple[CacheSpec, OpenedStore]] = []
    notes: list[str] = []
    spot_check = SpotCheck(policy, config, processor, pairs)
    for spec in available.passes:
        folder = store_folder(available.cache, spec.key)
        opened: list[OpenedStore] = []
        problems = workers.gather_results(partial(_open_store, spot_check, spec, folder, opened))
        problem = next(
            (worker_problem for worker_problem in problems if worker_problem is not None), None
        )
        if problem is None:
            stores.append((spec, opened[0]))
        else:
            notes.append(
                f"the reference pass '{spec.name}' in {folder} is not used: {problem}; "
                "computed in the step"
            )
    return OpenedStores(
        policy=policy, config=config, pairs=len(pairs), stores=stores, notes=tuple(notes)
    )


def _open_store(
    spot_check: SpotCheck, spec: CacheSpec, folder: Path, opened: list[OpenedStore]
) -> str | None:
    """Open a store and add it to `opened`; return why it cannot be used, or None."""
    try:
        store = OpenedStore(folder, spec.identity)
        spot_check.verify(spec, store)
    except BrokenStoreError as error:
        return str(error)
    opened.append(store)
    return None


@dataclass(frozen=True, kw_only=True)
class OpenedStores:
    """The stores of a training that are complete and of this model."""

    policy: Policy
    config: TrialConfig
    pairs: int
    stores: Sequence[tuple[CacheSpec, OpenedStore]]
    notes: tuple[str, ...]

    def reference(self, live: Callable[[], LiveReferenceSource]) -> TrainingReference:
        """Return the reference that the training reads.

        Args:
            live: returns the object that computes the reference; only called if it is needed.
        """
        features = StoredFeatures(
            images=self._stores_of_kind("features").get(None),
            rejected_images=self._stores_of_kind("rejected_image_features"),
        )
        text = self._stores_of_kind("text").get(None)
        objective = self.config.objective
        by_quantity: dict[tuple[str, Quantity], dict[int | None, OpenedStore]] = {
            (view, quantity): {
                spec.epoch: store
                for spec, store in self.stores
                if quantity in spec.reads.get(view, ())
            }
            for view, quantities in objective.reference_reads.items()
            for quantity in quantities
        }
        reached_epochs = set(range(count_epochs(self.config, self.pairs)))
        missing = any(
            None not in epochs
            and not (VIEWS[view][0] == "rejected_image" and reached_epochs <= set(epochs))
            for (view, _), epochs in by_quantity.items()
        )
        live_source: LiveReferenceSource | None = None
        mode = "stored"
        if missing:
            live_source = live()
            mode = "partly stored" if any(by_quantity.values()) else "live"
        reference: ReferenceSource
        if live_source is not None and mode == "live":
            reference = live_source
        else:
            hidden = objective.needs_divergence
            head = None
            if hidden:
                head = (
                    _stored_head(self.policy, self.config, text)
                    if live_source is None
                    else live_source.head
                )
            reference = StoredReference(by_quantity, head=head, hidden=hidden, live=live_source)
        engine = {"reference": mode, "image_features": features.mode}
        return TrainingReference(
            source=reference, attach_features=features.attach, engine=engine, notes=self.notes
        )

    def _stores_of_kind(self, kind: str) -> dict[int | None, OpenedStore]:
        return {spec.epoch: store for spec, store in self.stores if spec.kind == kind}


def _stored_head(
    policy: Policy, config: TrialConfig, text_store: OpenedStore | None
) -> OutputHead | None:
    """Return the reference's output head; None if the policy's own is frozen."""
    assert text_store is not None
    head_weight = policy.model.get_output_embeddings().weight
    trained = select_trained_parameters(policy.model, config).values()
    if not any(head_weight is parameter for part in trained for parameter in part.values()):
        return None
    tensors: dict[str, Tensor] = {
        name: value.to(head_weight.device) for name, value in text_store.tensors(HEAD_FILE).items()
    }
    return OutputHead(weight=tensors["weight"], bias=tensors.get("bias"))


#: Allowed mean difference over tokens between stored and computed log-probabilities. Rounding in
#: bf16 gives about 0.02; another model or image gives far more.
_LOGP_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}

#: Allowed difference of hidden states with stored features from those without: the norm of the
#: difference over the norm.
_STATE_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}


class SpotCheck:
    """Compute a few samples and compare stores with them."""

    def __init__(
        self, policy: Policy, config: TrialConfig, processor: Any, pairs: Sequence[PreferencePair]
    ) -> None:
        """Create a spot check; compute nothing yet.

        Args:
            policy: the model to train, before training.
            config: the trial.
            processor: the model's.
            pairs: the preference pairs.
        """
        self._policy, self._config = policy, config
        self._processor, self._pairs = processor, pairs
        self._batches: dict[int, PairBatch] = {}  # by epoch
        self._scores: dict[int, ReferenceScores] = {}
        self._states: dict[int, ResponseStates] = {}

    def verify(self, spec: CacheSpec, store: OpenedStore) -> None:
        """Check a store's first and last sample; a worker without weights leaves it to another.

        Raises:
            BrokenStoreError: they differ from the computed values by more than rounding.
        """
        if len(store) != len(self._pairs):
            raise BrokenStoreError(
                f"it has {len(store)} samples, but the data has {len(self._pairs)}"
            )
        if not has_weights(self._policy):
            return
        epoch = spec.epoch or 0
        if epoch not in self._batches:
            # A separate encoder, because the training's counts the responses that it cuts.
            encoder = PairEncoder(self._processor, self._config, self._pairs)
            self._batches[epoch] = encoder.encode_batch(sorted({0, len(self._pairs) - 1}), epoch)
        if spec.is_features:
            self._verify_features(spec, store, epoch)
        else:
            self._verify_responses(spec, store, epoch)

    def _verify_responses(self, spec: CacheSpec, store: OpenedStore, epoch: int) -> None:
        batch = self._batches[epoch].to(self._device)
        if epoch not in self._scores:
            self._scores[epoch] = self._policy.reference_scores(batch)
        scores = self._scores[epoch].views
        quantity: Quantity = spec.identity.get("quantity", "logps")
        responses = batch.responses[spec.view]
        computed = None if spec.view not in scores else getattr(scores[spec.view], quantity)
        if computed is None:  # the objective does not read this side of a store that has more
            single_read: Reads = {spec.view: frozenset([quantity])}
            computed = getattr(
                self._policy.reference_scores(batch, single_read).views[spec.view], quantity
            )
        ids = store.rows(batch.indices, "chosen.ids")
        if ids.tolist() != responses.ids[responses.mask].tolist():
            raise BrokenStoreError("its responses differ from the data's")
        stored = store.rows(batch.indices, "chosen.logps").to(computed.device)
        difference = float((stored - computed[responses.mask]).abs().mean())
        if not difference <= _LOGP_TOLERANCE[self._config.model.dtype]:
            raise BrokenStoreError(
                f"its log-probabilities are not this model's (they differ by {difference:.3g} per "
                "token)"
            )

    @torch.no_grad()
    def _verify_features(self, spec: CacheSpec, store: OpenedStore, epoch: int) -> None:
        if not is_tower_frozen(self._policy.model, self._config):
            raise BrokenStoreError("trained parameters are within the tower")
        batch = self._batches[epoch]
        if epoch not in self._states:
            self._states[epoch] = self._policy.compute_states(batch.to(self._device))
        is_rejected = spec.is_rejected_image
        with_features = StoredFeatures(
            images=None if is_rejected else store,
            rejected_images={None: store} if is_rejected else {},
        ).attach(batch)
        try:
            states = self._policy.compute_states(with_features.to(self._device))
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            reason = first_line(error)
            raise BrokenStoreError(f"the model does not accept them ({reason})") from None
        difference = _relative_distance(
            _select_states(states, is_rejected), _select_states(self._states[epoch], is_rejected)
        )
        if not difference <= _STATE_TOLERANCE[self._config.model.dtype]:
            raise BrokenStoreError(f"hidden states differ by {difference:.1e} with them")

    @property
    def _device(self) -> torch.device:
        return next(self._policy.parameters()).device


def _select_states(states: ResponseStates, rejected_image: bool) -> Tensor:
    selected = states.rejected_image if rejected_image else states.chosen
    assert selected is not None
    return selected.double()


def _relative_distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Add the features in stores to batches; the others are computed."""

    images: OpenedStore | None
    rejected_images: Mapping[int | None, OpenedStore]  # by epoch; None: for all epochs

    @property
    def mode(self) -> Literal["stored", "computed"]:
        """Whether there are any stored features."""
        return "stored" if self.images is not None or self.rejected_images else "computed"

    def attach(self, batch: PairBatch) -> PairBatch:
        """Return a batch, on the CPU, with its images' features."""
        if self.images is not None:
            batch = replace(
                batch, prompts=_attach_stored(self.images, batch.indices, batch.prompts)
            )
        epoch = None if None in self.rejected_images else batch.epoch
        store, prompts = self.rejected_images.get(epoch), batch.rejected_image_prompts
        if store is not None and prompts is not None:
            batch = replace(
                batch, rejected_image_prompts=_attach_stored(store, batch.indices, prompts)
            )
        return batch


def _attach_stored(store: OpenedStore, indices: tuple[int, ...], prompts: Prompts) -> Prompts:
    features = {column_field(name): store.rows(indices, name) for name in store.columns}
    return replace(prompts, features=features)


class StoredReference:
    """Read the reference's outputs from stores, and compute the others."""

    def __init__(
        self,
        stores: Mapping[tuple[str, Quantity], Mapping[int | None, OpenedStore]],
        *,
        head: OutputHead | None,
        hidden: bool,
        live: LiveReferenceSource | None,
    ) -> None:
        """Create a training's reference.

        Args:
            stores: for each quantity of a view that is read, by epoch; None: for all epochs. What
                is missing here is computed.
            head: maps hidden states to logits; None: the policy's own, frozen.
            hidden: whether hidden states are read.
            live: computes what is in no store.
        """
        self._stores, self._head, self._hidden, self._live = stores, head, hidden, live

    @property
    def head(self) -> OutputHead | None:
        """The head that maps its hidden states to logits; None: the policy's own, frozen."""
        return self._head

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return the reference's scores of a batch, on the batch's device, without a graph.

        Raises:
            TrialError: a store is of other responses than the batch's.
        """
        stored: dict[str, dict[str, Tensor]] = {}
        missing: dict[str, frozenset[Quantity]] = {}
        for (view, quantity), epochs in self._stores.items():
            store = epochs.get(None if None in epochs else batch.epoch)
            if store is None:
                missing[view] = missing.get(view, frozenset()) | {quantity}
                continue
            stored.setdefault(view, {})
            is_text = view in ("chosen", "rejected")
            columns = _read_columns(
                store,
                view if is_text and quantity == "logps" else "chosen",
                batch.indices,
                batch.responses[view],
                hidden=self._hidden and is_text and quantity == "logps",
            )
            stored[view][quantity] = columns["logps"]
            if "hidden" in columns:
                stored[view]["hidden"] = columns["hidden"]
        views = {view: ResponseReference(**columns) for view, columns in stored.items()}
        if missing:
            assert self._live is not None
            computed = self._live.score_views(batch.select_views(missing), missing).views
            for view, computed_view in computed.items():
                stored_view = stored.get(view, {})
                views[view] = (
                    replace(computed_view, **stored_view) if stored_view else computed_view
                )
        return ReferenceScores(views=views)


def _read_columns(
    store: OpenedStore,
    group: str,
    indices: tuple[int, ...],
    responses: Responses,
    *,
    hidden: bool,
) -> dict[str, Tensor]:
    """Return a store's columns of one response per pair, (B, C) and (B, C, D)."""

    def column(name: str) -> Tensor:
        return store.rows(indices, f"{group}.{name}")

    host_responses, device = responses.on_host, responses.ids.device
    if not torch.equal(column("ids"), host_responses.ids[host_responses.mask].int()):
        raise TrialError(
            f"the reference pass in {store.folder} has other {group} responses than this trial "
            f"(among the pairs {', '.join(map(str, indices))}): the data changed during the "
            "training; remove that folder and run again"
        )
    names = ("logps", "hidden") if hidden else ("logps",)
    return {name: scatter_tokens(to_device(column(name), device), responses) for name in names}
