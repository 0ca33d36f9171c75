"""Muffin's image processor: one fixed size, values from -1 to 1."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images


class MuffinImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Turn pictures into pixel values.

    Pillow's bicubic resize brings both sides to the model's size, first the width and then the
    height: Pillow 13 would choose the order itself. Nothing is cropped, and the aspect ratio is not
    kept.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        *,
        size: dict[str, int] | int = 448,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        **others: Any,
    ) -> None:
        """Create an image processor.

        Args:
            size: pixels on a side, or `{"height": …, "width": …}`.
            image_mean: subtracted from values between 0 and 1.
            image_std: the divisor after that.
            others: arguments of every transformers image processor.
        """
        super().__init__(**others)
        self.size = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """Return `pixel_values`, (images, 3, height, width) in float32.

        Args:
            images: PIL images or arrays (height, width, 3) from 0 to 255: one, a list, or lists.
            return_tensors: `pt` for one tensor; None for a list of them.
        """
        values = [self._compute_values(image) for image in make_flat_list_of_images(images)]
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def _compute_values(self, image: Any) -> torch.Tensor:
        if not isinstance(image, Image.Image):
            image = Image.fromarray(numpy.asarray(image, dtype=numpy.uint8))
        image = image.convert("RGB")
        width, height = self.size["width"], self.size["height"]
        for size in ((width, image.height), (width, height)):
            if image.size != size:
                image = image.resize(size, Image.Resampling.BICUBIC)
        colours = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (self.image_mean, self.image_std))
        return (colours - mean) / std
