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
from chip_core.training.footprint.published import estimate_image_size
from chip_core.training.footprint.step import RowShape
from chip_core.utils.errors import ConfigError

#: Tokens that are taken for data that is not here: a question with the chat's layout, a response,
#: and the longest response.
QUESTION_TOKENS, LONGEST_RESPONSE = 60, 512
_SAMPLE_SIZE = 128  # pairs


@dataclass(frozen=True, kw_only=True)
class RowShapes:
    """A trial's rows."""

    typical: RowShape
    longest: RowShape
    sampled: bool  # from its data, and not taken for it

    @property
    def basis(self) -> str:
        """What the figures are of, for people."""
        shape = self.longest
        origin = (
            "as in a sample of the data" if self.sampled else "assumed for data that is not here"
        )
        return (
            f"{'two images' if shape.separate_images else 'an image'} of {shape.image:,} tokens, "
            f"{shape.text} of question, responses of up to "
            f"{max(shape.chosen, shape.rejected):,} ({origin})"
        )


def estimate_row_shapes(model_config: Any, config: TrialConfig) -> RowShapes:
    """Return the shape of a trial's rows.

    Args:
        model_config: the model's configuration, of transformers.
        config: the trial.
    """
    image = estimate_image_size(model_config)
    lengths, sides = None, False
    if not is_hub_name(config.data.source):
        try:
            lengths = list(islice(iter_response_tokens(config), _SAMPLE_SIZE))
            sides = config.data.source != SHAPES and open_source(config.data).has_separate_images(
                _SAMPLE_SIZE
            )
        except ConfigError:
            lengths = None
    max_response = max(1, config.training.max_length - image.tokens - QUESTION_TOKENS)

    def shape(chosen: float, rejected: float) -> RowShape:
        return RowShape(
            pairs=config.engine.micro_batch,
            image=image.tokens,
            text=QUESTION_TOKENS,
            chosen=min(max_response, max(1, round(chosen))),
            rejected=min(max_response, max(1, round(rejected))),
            tiles=image.tiles,
            separate_images=sides,
        )

    if not lengths:
        return RowShapes(
            typical=shape(USUAL_RESPONSE_TOKENS, USUAL_RESPONSE_TOKENS),
            longest=shape(LONGEST_RESPONSE, LONGEST_RESPONSE),
            sampled=False,
        )
    tokens = list(zip(*lengths, strict=True))
    return RowShapes(
        typical=shape(*(fmean(side) for side in tokens)),
        longest=shape(*(max(side) for side in tokens)),
        sampled=True,
    )
