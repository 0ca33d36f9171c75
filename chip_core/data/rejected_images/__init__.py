"""Make the visual term's rejected image from the true one.

`diffusion` acts on the processor's normalised pixel values, as the released code does; the others
act on the RGB image before the processor.
"""

from __future__ import annotations

from chip_core.data.rejected_images import strategies as strategies  # importing registers them
from chip_core.data.rejected_images.base import (
    REJECTED_IMAGES,
    ImageSample,
    ImageStrategy,
    PixelStrategy,
    RejectedImage,
    RejectedImageMaker,
    Source,
    Strategy,
    Traits,
    find_strategy,
)

__all__ = [
    "REJECTED_IMAGES",
    "ImageSample",
    "ImageStrategy",
    "PixelStrategy",
    "RejectedImage",
    "RejectedImageMaker",
    "Source",
    "Strategy",
    "Traits",
    "find_strategy",
]
