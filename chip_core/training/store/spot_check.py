"""Spot check of a store: compute its first and last sample, and compare what it says.

What a store is of, by name, may be something else by now: a hub name has new weights, a library
another arithmetic. What a family does with features that are given to it shows here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import PreferencePair
from chip_core.data.tensors import PairBatch
from chip_core.models.tower import is_frozen
from chip_core.training.policy import Policy
from chip_core.training.reference import ReferenceScores
from chip_core.training.states import ResponseStates
from chip_core.training.store.features import StoredFeatures
from chip_core.training.store.folder import BrokenStoreError
from chip_core.training.store.passes import ReferencePass
from chip_core.training.store.shards import Store

#: How far the log-probabilities may lie from what is stored, in the mean over tokens. Rounding in
#: bf16 comes to about 0.02; another model's or image's are off by far more.
_LOGPS = {"fp32": 1e-3, "bf16": 0.1}

#: How far hidden states with given features may lie from those without: the norm of the difference
#: over the norm.
_STATES = {"fp32": 1e-4, "bf16": 0.05}


class SpotCheck:
    """Computes a few samples and compares stores with them."""

    def __init__(
        self, policy: Policy, config: TrialConfig, processor: Any, pairs: Sequence[PreferencePair]
    ) -> None:
        """Compute nothing yet.

        Args:
            policy: what is trained, as it is before that.
            config: the trial.
            processor: the model's.
            pairs: the preference pairs.
        """
        self._policy, self._config = policy, config
        self._processor, self._pairs = processor, pairs
        self._batches: dict[int, PairBatch] = {}  # by epoch
        self._scores: dict[int, ReferenceScores] = {}
        self._states: dict[int, ResponseStates] = {}

    def verify(self, one: ReferencePass, store: Store) -> None:
        """Check a store's first and last sample.

        Raises:
            BrokenStoreError: they differ from what is computed by more than rounding.
        """
        if len(store) != len(self._pairs):
            raise BrokenStoreError(f"it has {len(store)} samples, the data {len(self._pairs)}")
        epoch = one.epoch or 0
        if epoch not in self._batches:
            # An encoder of its own: the training's counts what it cuts.
            encoder = PairEncoder(self._processor, self._config, self._pairs)
            self._batches[epoch] = encoder.batch(sorted({0, len(self._pairs) - 1}), epoch)
        if one.of_features:
            self._verify_features(one, store, epoch)
        else:
            self._verify_responses(one, store, epoch)

    def _verify_responses(self, one: ReferencePass, store: Store, epoch: int) -> None:
        batch = self._batches[epoch].to(self._device)
        if epoch not in self._scores:
            self._scores[epoch] = self._policy.reference_scores(batch)
        scores = self._scores[epoch]
        responses, said = batch.chosen, scores.chosen
        if one.of_rejected_image:
            assert batch.rejected_image is not None and scores.rejected_image is not None
            responses, said = batch.rejected_image, scores.rejected_image
        ids = store.rows(batch.places, "chosen.ids")
        if ids.tolist() != responses.ids[responses.mask].tolist():
            raise BrokenStoreError("its responses are not the data's")
        stored = store.rows(batch.places, "chosen.logps").to(said.logps.device)
        gap = float((stored - said.logps[responses.mask]).abs().mean())
        if not gap <= _LOGPS[self._config.model.dtype]:
            raise BrokenStoreError(
                f"its log-probabilities are not this model's (they differ by {gap:.3g} a token)"
            )

    @torch.no_grad()
    def _verify_features(self, one: ReferencePass, store: Store, epoch: int) -> None:
        if not is_frozen(self._policy.model, self._config):
            raise BrokenStoreError("what is trained lies within the tower")
        batch = self._batches[epoch]
        if epoch not in self._states:
            self._states[epoch] = self._policy.states(batch.to(self._device))
        rejected = one.of_rejected_image
        given = StoredFeatures(
            images=None if rejected else store, rejected_images={None: store} if rejected else {}
        ).attached(batch)
        try:
            states = self._policy.states(given.to(self._device))
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise BrokenStoreError(f"the model cannot be given them ({what})") from None
        gap = _apart(_of(states, rejected), _of(self._states[epoch], rejected))
        if not gap <= _STATES[self._config.model.dtype]:
            raise BrokenStoreError(f"hidden states differ by {gap:.1e} with them")

    @property
    def _device(self) -> torch.device:
        return next(self._policy.parameters()).device


def _of(states: ResponseStates, rejected_image: bool) -> Tensor:
    found = states.rejected_image if rejected_image else states.chosen
    assert found is not None
    return found.double()


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
