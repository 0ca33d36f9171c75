"""From the stores that a trial is offered to its reference.

A store that is missing, broken or not this model's is not used: the reference is computed in the
step in its place, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import PreferencePair
from chip_core.data.tensors import PairBatch
from chip_core.models.parts import trained_parts
from chip_core.objectives.head import OutputHead
from chip_core.training.policy import Policy
from chip_core.training.reference import Live, ReferenceScores, ReferenceSource
from chip_core.training.store.build import HEAD
from chip_core.training.store.folder import BrokenStoreError, store_folder
from chip_core.training.store.passes import Offered, ReferencePass, epochs_reached
from chip_core.training.store.shards import Store
from chip_core.training.store.source import StoredReference

#: How far the log-probabilities of a few responses may lie from what is stored, in the mean over
#: tokens. Rounding in bf16 comes to about 0.02; another model's or image's are off by far more.
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


@dataclass(frozen=True, kw_only=True)
class OpenedReference:
    """A training's reference, and what is to be said of it."""

    source: ReferenceSource
    how: Literal["stored", "partly stored", "live"]
    notes: tuple[str, ...]


def open_reference(
    policy: Policy,
    config: TrialConfig,
    *,
    processor: Any,
    pairs: Sequence[PreferencePair],
    offered: Offered | None,
    live: Callable[[], Live],
    said: Callable[[PairBatch], ReferenceScores],
) -> OpenedReference:
    """Return the reference of a training, before its first step.

    Args:
        policy: what is trained, as it is before that.
        config: the trial.
        processor: the model's.
        pairs: the preference pairs.
        offered: the stores that may be read; None: it is computed.
        live: makes what computes the reference; asked only where it is needed.
        said: returns what the policy says of a batch now.
    """
    stores: list[tuple[ReferencePass, Store]] = []
    notes: list[str] = []
    look = _Look(policy, config, processor, pairs, said)
    for one in () if offered is None else offered.passes:
        assert offered is not None
        folder = store_folder(offered.cache, one.key)
        try:
            store = Store(folder, one.identity)
            look.at(one, store)
            stores.append((one, store))
        except BrokenStoreError as error:
            notes.append(
                f"the reference pass '{one.name}' in {folder} is not used: {error}; "
                "computed in the step"
            )
    text = next((store for one, store in stores if one.kind == "text"), None)
    images = {one.epoch: store for one, store in stores if one.kind == "rejected_image"}
    wanted: set[int | None] = set()
    if config.objective.needs_rejected_image and None not in images:
        wanted = set(range(epochs_reached(config, len(pairs))))
    source: Live | None = None
    if text is None or not wanted <= set(images):
        source = live()
        if not stores:
            return OpenedReference(source=source, how="live", notes=tuple(notes))
    hidden = config.objective.needs_divergence
    head = None
    if hidden:
        head = _stored_head(policy, config, text) if source is None else source.head
    stored = StoredReference(
        text=text, rejected_image=images, head=head, hidden=hidden, live=source
    )
    how: Literal["stored", "partly stored"] = "stored" if source is None else "partly stored"
    return OpenedReference(source=stored, how=how, notes=tuple(notes))


def _stored_head(policy: Policy, config: TrialConfig, text: Store | None) -> OutputHead | None:
    """Return the reference's output head; None where the policy's own is frozen."""
    assert text is not None
    own = policy.model.get_output_embeddings().weight
    trained = trained_parts(policy.model, config).values()
    if not any(own is parameter for part in trained for parameter in part.values()):
        return None
    tensors: dict[str, Tensor] = {
        name: value.to(own.device) for name, value in text.tensors(HEAD).items()
    }
    return OutputHead(weight=tensors["weight"], bias=tensors.get("bias"))


class _Look:
    """Computes a few samples and holds stores against them."""

    def __init__(
        self,
        policy: Policy,
        config: TrialConfig,
        processor: Any,
        pairs: Sequence[PreferencePair],
        said: Callable[[PairBatch], ReferenceScores],
    ) -> None:
        self._policy, self._config = policy, config
        self._processor, self._pairs = processor, pairs
        self._said = said
        self._batches: dict[int, tuple[PairBatch, ReferenceScores]] = {}  # by epoch

    def at(self, one: ReferencePass, store: Store) -> None:
        """Check a store's first and last sample.

        Raises:
            BrokenStoreError: they differ from what the policy says by more than rounding.
        """
        if len(store) != len(self._pairs):
            raise BrokenStoreError(f"it has {len(store)} samples, the data {len(self._pairs)}")
        batch, scores = self._computed(one.epoch or 0)
        responses, said = batch.chosen, scores.chosen
        if one.kind == "rejected_image":
            assert batch.rejected_image is not None and scores.rejected_image is not None
            responses, said = batch.rejected_image, scores.rejected_image
        ids = store.rows(batch.places, "chosen.ids")
        if ids.tolist() != responses.ids[responses.mask].tolist():
            raise BrokenStoreError("its responses are not the data's")
        stored = store.rows(batch.places, "chosen.logps").to(said.logps.device)
        gap = float((stored - said.logps[responses.mask]).abs().mean())
        if not gap <= _TOLERANCE[self._config.model.dtype]:
            raise BrokenStoreError(
                f"its log-probabilities are not this model's (they differ by {gap:.3g} a token)"
            )

    def _computed(self, epoch: int) -> tuple[PairBatch, ReferenceScores]:
        if epoch not in self._batches:
            # An encoder of its own: the training's counts what it cuts.
            encoder = PairEncoder(self._processor, self._config, self._pairs)
            device = next(self._policy.parameters()).device
            batch = encoder.batch(sorted({0, len(self._pairs) - 1}), epoch).to(device)
            self._batches[epoch] = batch, self._said(batch)
        return self._batches[epoch]
