"""Make the visual term's rejected image from the true one.

`diffusion` acts on the processor's normalised pixel values, as the released code does; the others
act on the RGB image before the processor.
"""

from __future__ import annotations

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
from chip_core.data.rejected_images.strategies import (
    Black,
    Blur,
    Crop,
    Diffusion,
    Given,
    Inpaint,
    Lighting,
    Mean,
    Mixup,
    Occlusion,
    RandomImage,
    Rotate,
    compute_diffusion_coefficients,
)

__all__ = [
    "REJECTED_IMAGES",
    "Black",
    "Blur",
    "Crop",
    "Diffusion",
    "Given",
    "ImageSample",
    "ImageStrategy",
    "Inpaint",
    "Lighting",
    "Mean",
    "Mixup",
    "Occlusion",
    "PixelStrategy",
    "RandomImage",
    "RejectedImage",
    "RejectedImageMaker",
    "Rotate",
    "Source",
    "Strategy",
    "Traits",
    "compute_diffusion_coefficients",
    "find_strategy",
]
