"""How the visual term's rejected image is made from the true one.

`diffusion` acts on the processor's normalised pixel values, as the released code does; the
others act on the RGB image before the processor. A draw is a function of the strategy with its
parameters, the corruption seed and the sample's id.
"""

from __future__ import annotations

import functools

import torch
from PIL import Image
from torch import Tensor

from chip_core.config import RejectedImageConfig
from chip_core.seeding import generator


@functools.cache
def _noise_schedule() -> Tensor:
    # The released schedule: sigmoid betas from 1e-5 to 5e-3 over 1000 steps, in float32.
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="sigmoid", beta_start=1e-5, beta_end=5e-3
    )
    cumulative: Tensor = scheduler.alphas_cumprod
    return cumulative


def diffusion_coefficients(timestep: int) -> tuple[float, float]:
    """Return (√ᾱ, √(1−ᾱ)) at a timestep of 1000, computed in float32."""
    cumulative = _noise_schedule()[timestep]
    return float(cumulative.sqrt()), float((1 - cumulative).sqrt())


def rejected_image(image: Image.Image, config: RejectedImageConfig) -> Image.Image:
    """Return the RGB image that goes to the processor in the true one's place."""
    if config.strategy == "black":
        return Image.new("RGB", image.size)
    return image  # diffusion acts after the processor


def corrupt_pixels(
    pixel_values: Tensor, config: RejectedImageConfig, *, seed: int, sample: str
) -> Tensor:
    """Return the processor's pixel values as the strategy leaves them.

    Args:
        pixel_values: any shape, normalised.
        config: the strategy.
        seed: the corruption seed.
        sample: the sample's id; the same key gives the same draw.
    """
    if config.strategy != "diffusion":
        return pixel_values
    timestep = config.diffusion.timestep
    draw = generator("rejected_image", "diffusion", timestep, seed, sample)
    noise = torch.randn(pixel_values.shape, generator=draw)
    signal, spread = diffusion_coefficients(timestep)
    return signal * pixel_values.float() + spread * noise
