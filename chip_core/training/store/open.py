"""From the stores that a trial is offered to its reference and its images' features.

A store that is missing, broken or not this model's is not used: what it would say is computed in
the step in its place, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.preferences import PreferencePair
from chip_core.data.tensors import PairBatch
from chip_core.models.parts import trained_parts
from chip_core.objectives.head import OutputHead
from chip_core.training.policy import Policy
from chip_core.training.reference import Live, ReferenceSource
from chip_core.training.store.build import HEAD
from chip_core.training.store.features import StoredFeatures
from chip_core.training.store.folder import BrokenStoreError, store_folder
from chip_core.training.store.passes import Offered, ReferencePass, epochs_reached
from chip_core.training.store.shards import Store
from chip_core.training.store.source import StoredReference
from chip_core.training.store.spot_check import SpotCheck


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a training reads in place of computing, and what is to be said of it."""

    source: ReferenceSource
    features: StoredFeatures
    #: `reference`: stored, partly stored, live. `image_features`: stored, computed.
    engine: dict[str, str]
    notes: tuple[str, ...]

    def attached(self, batch: PairBatch) -> PairBatch:
        """Return a batch, on the CPU, with the features of its images that are stored."""
        return self.features.attached(batch)


def open_stores(
    policy: Policy,
    config: TrialConfig,
    *,
    processor: Any,
    pairs: Sequence[PreferencePair],
    offered: Offered | None,
) -> Stores:
    """Open a training's stores, before its first step.

    Args:
        policy: what is trained, as it is before that; not yet sharded.
        config: the trial.
        processor: the model's.
        pairs: the preference pairs.
        offered: the stores that may be read; None: nothing is.
    """
    stores: list[tuple[ReferencePass, Store]] = []
    notes: list[str] = []
    spot_check = SpotCheck(policy, config, processor, pairs)
    for one in () if offered is None else offered.passes:
        assert offered is not None
        folder = store_folder(offered.cache, one.key)
        try:
            store = Store(folder, one.identity)
            spot_check.verify(one, store)
            stores.append((one, store))
        except BrokenStoreError as error:
            notes.append(
                f"the reference pass '{one.name}' in {folder} is not used: {error}; "
                "computed in the step"
            )

    return Stores(policy=policy, config=config, pairs=len(pairs), whole=stores, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class Stores:
    """The stores of a training that are whole and this model's."""

    policy: Policy
    config: TrialConfig
    pairs: int
    whole: Sequence[tuple[ReferencePass, Store]]
    notes: tuple[str, ...]

    def opened(self, live: Callable[[], Live]) -> Opened:
        """Return what the training reads.

        Args:
            live: makes what computes the reference; asked only where it is needed.
        """
        features = StoredFeatures(
            images=self._of("features").get(None),
            rejected_images=self._of("rejected_image_features"),
        )
        text, images = self._of("text").get(None), self._of("rejected_image")
        wanted: set[int | None] = set()
        if self.config.objective.needs_rejected_image and None not in images:
            wanted = set(range(epochs_reached(self.config, self.pairs)))
        computed: Live | None = None
        how = "stored"
        if text is None or not wanted <= set(images):
            computed = live()
            how = "live" if text is None and not images else "partly stored"
        reference: ReferenceSource
        if computed is not None and how == "live":
            reference = computed
        else:
            hidden = self.config.objective.needs_divergence
            head = None
            if hidden:
                head = (
                    _stored_head(self.policy, self.config, text)
                    if computed is None
                    else computed.head
                )
            reference = StoredReference(
                text=text, rejected_image=images, head=head, hidden=hidden, live=computed
            )
        engine = {"reference": how, "image_features": features.how}
        return Opened(source=reference, features=features, engine=engine, notes=self.notes)

    def _of(self, kind: str) -> dict[int | None, Store]:
        return {one.epoch: store for one, store in self.whole if one.kind == kind}


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
