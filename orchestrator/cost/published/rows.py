"""The shape of a trial's rows: from a sample of its data, or what is taken for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from chip_core.config.trial import TrialConfig
from chip_core.data.files import is_hub_name
from chip_core.data.source import SHAPES, open_source
from chip_core.reference_cache.size import USUAL_RESPONSE_TOKENS, iter_response_tokens
from chip_core.training.footprint.published import image_size
from chip_core.training.footprint.step import RowShape
from chip_core.utils.errors import ConfigError

#: Tokens that are taken for data that is not here: a question with the chat's layout, a response,
#: and the longest response.
QUESTION, LONGEST = 60, 512
_SAMPLE = 128  # pairs


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A trial's rows."""

    usual: RowShape
    longest: RowShape
    sampled: bool  # from its data, and not taken for it

    @property
    def basis(self) -> str:
        """What the figures are of, for people."""
        shape = self.longest
        how = "as in a sample of the data" if self.sampled else "taken for data that is not here"
        return (
            f"{'two images' if shape.separate_images else 'an image'} of {shape.image:,} tokens, "
            f"{shape.text} of question, responses of up to "
            f"{max(shape.chosen, shape.rejected):,} ({how})"
        )


def rows_of_trial(found: Any, config: TrialConfig) -> Rows:
    """Return the shape of a trial's rows.

    Args:
        found: the model's configuration, of transformers.
        config: the trial.
    """
    image = image_size(found)
    lengths, sides = None, False
    if not is_hub_name(config.data.source):
        try:
            lengths = list(islice(iter_response_tokens(config), _SAMPLE))
            sides = config.data.source != SHAPES and open_source(config.data).has_separate_images(
                _SAMPLE
            )
        except ConfigError:
            lengths = None
    room = max(1, config.training.max_length - image.tokens - QUESTION)

    def shape(chosen: float, rejected: float) -> RowShape:
        return RowShape(
            pairs=config.engine.micro_batch,
            image=image.tokens,
            text=QUESTION,
            chosen=min(room, max(1, round(chosen))),
            rejected=min(room, max(1, round(rejected))),
            tiles=image.tiles,
            separate_images=sides,
        )

    if not lengths:
        return Rows(
            usual=shape(USUAL_RESPONSE_TOKENS, USUAL_RESPONSE_TOKENS),
            longest=shape(LONGEST, LONGEST),
            sampled=False,
        )
    tokens = list(zip(*lengths, strict=True))
    return Rows(
        usual=shape(*(fmean(side) for side in tokens)),
        longest=shape(*(max(side) for side in tokens)),
        sampled=True,
    )
