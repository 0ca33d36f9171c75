"""Passes that are made together: one model, one preparation of each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch
from chip_core.objectives.config import ObjectiveConfig, Term
from chip_core.training.exactness import shared_prefixes
from chip_core.training.policy import Policy
from chip_core.training.store.image_features import ImageFeatures
from chip_core.training.store.passes import ReferencePass
from chip_core.training.store.response_logps import ResponseLogps


class Group:
    """What a group of passes computes with."""

    def __init__(
        self,
        passes: Sequence[ReferencePass],
        config: TrialConfig,
        model: Any,
        processor: Any,
        pairs: Pairs,
    ) -> None:
        """Make ready.

        Args:
            passes: a group.
            config: that it is made with.
            model: the reference, on its device.
            processor: its processor.
            pairs: all pairs.

        Raises:
            TrialError: features are asked of a tower that is trained.
        """
        objective = _objective(passes)
        self._sharing = config.engine.prefix_sharing
        self._alone = all(one.of_features for one in passes)
        self._epoch = next((one.epoch for one in passes if one.of_rejected_image), None) or 0
        self._device = next(model.parameters()).device
        self._encoder = PairEncoder(
            processor, config.model_copy(update={"objective": objective}), pairs
        )
        self._policy = Policy(
            model,
            objective,
            bf16=config.model.dtype == "bf16",
            logits_chunk=config.engine.logits_chunk,
        )
        self._of: dict[str, ImageFeatures | ResponseLogps] = {}
        for one in passes:
            if one.of_features:
                self._of[one.key] = ImageFeatures(one, config, model, self._encoder)
            else:
                self._of[one.key] = ResponseLogps(one, self._policy, processor, pairs)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Share prefixes where the trials would."""
        if self._alone:
            yield
            return
        small = self.batch([0])
        with shared_prefixes(self._policy, small, self._sharing) as sharing:
            for said in self._of.values():
                if isinstance(said, ResponseLogps):
                    said.facts["prefix_sharing"] = sharing
            yield

    def batch(self, places: Sequence[int]) -> PairBatch:
        """Return some samples, on the device."""
        return self._encoder.batch(places, self._epoch).to(self._device)

    def of(self, one: ReferencePass) -> ImageFeatures | ResponseLogps:
        """Return what computes a pass's rows."""
        return self._of[one.key]


def _objective(passes: Sequence[ReferencePass]) -> ObjectiveConfig:
    """Return an objective that needs of the reference what the passes say."""
    terms: list[Term] = ["response"]
    if any(one.hidden is not None for one in passes):
        terms.append("token")
    if any(one.of_rejected_image for one in passes):
        terms.append("visual")
    return ObjectiveConfig(terms=tuple(terms))
