"""From the stores that a trial is offered to its reference.

A store that is missing, broken or not this model's is not used: the reference is computed in the
step in its place, and a note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import PreferencePair
from chip_core.models.parts import trained_parts
from chip_core.objectives.head import OutputHead
from chip_core.training.policy import Policy
from chip_core.training.reference import LiveReference, ReferenceSource
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
) -> OpenedReference:
    """Return the reference of a training, before its first step.

    Args:
        policy: what is trained, as it is before that.
        config: the trial.
        processor: the model's.
        pairs: the preference pairs.
        offered: the stores that may be read; None: it is computed.
    """
    stores: list[tuple[ReferencePass, Store]] = []
    notes: list[str] = []
    for one in () if offered is None else offered.passes:
        assert offered is not None
        folder = store_folder(offered.cache, one.key)
        try:
            store = Store(folder, one.identity)
            _check_sample(one, store, policy, config, processor, pairs)
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
    whole = text is not None and wanted <= set(images)
    live = None if whole else LiveReference(policy, config)
    if not stores:
        assert live is not None
        return OpenedReference(source=live, how="live", notes=tuple(notes))
    hidden = config.objective.needs_divergence
    head = None
    if hidden:
        head = live.head if live is not None else _stored_head(policy, config, text)
    source = StoredReference(
        text=text,
        rejected_image=images,
        head=head,
        hidden=hidden,
        live=live,
    )
    how: Literal["stored", "partly stored"] = "stored" if whole else "partly stored"
    return OpenedReference(source=source, how=how, notes=tuple(notes))


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


def _check_sample(
    one: ReferencePass,
    store: Store,
    policy: Policy,
    config: TrialConfig,
    processor: Any,
    pairs: Sequence[PreferencePair],
) -> None:
    """Compute two samples of a pass, and hold them against what is stored.

    Raises:
        BrokenStoreError: they differ by more than rounding, in tokens or in log-probabilities.
    """
    if len(store) != len(pairs):
        raise BrokenStoreError(f"it has {len(store)} samples, the data {len(pairs)}")
    encoder = PairEncoder(processor, config, pairs)  # an own one: it counts what it cuts
    places = sorted({0, len(pairs) - 1})
    device = next(policy.parameters()).device
    batch = encoder.batch(places, one.epoch or 0).to(device)
    if one.kind == "text":
        said, responses = policy.text_reference(batch)[0], batch.chosen
    else:
        under_image = policy.rejected_image_reference(batch)
        assert under_image is not None and batch.rejected_image is not None
        said, responses = under_image, batch.rejected_image
    ids = store.rows(places, "chosen.ids").to(device)
    if ids.tolist() != responses.ids[responses.mask].tolist():
        raise BrokenStoreError("its responses are not the data's")
    stored = store.rows(places, "chosen.logps").to(device)
    gap = float((stored - said.logps[responses.mask]).abs().mean())
    if not gap <= _TOLERANCE[config.model.dtype]:
        raise BrokenStoreError(
            f"its log-probabilities are not this model's (they differ by {gap:.3g} a token)"
        )
