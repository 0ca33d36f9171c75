"""`diffusion`: forward diffusion noise on the processor's pixel values (paper, section 3.1)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from chip_core.config.strategies import DiffusionParameters
from chip_core.data.rejected_images.base import PixelStrategy, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES

if TYPE_CHECKING:
    from torch import Tensor

#: Each schedule as diffusers' DDPMScheduler takes it: the released CHiP code's sigmoid one, DDPM's
#: linear one, Stable Diffusion's scaled linear one, and the cosine one of improved DDPM.
SCHEDULES: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta_schedule": "sigmoid", "beta_start": 1e-5, "beta_end": 5e-3},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@functools.cache
def _signal_share(schedule: str) -> Tensor:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, **SCHEDULES[schedule])
    cumulative: Tensor = scheduler.alphas_cumprod  # float32, as released
    return cumulative


def diffusion_coefficients(timestep: int, schedule: str = "sigmoid") -> tuple[float, float]:
    """Return (√ᾱ, √(1−ᾱ)) at a timestep of 1000, computed in float32.

    Raises:
        ValueError: the timestep is not from 0 to 999.
    """
    if not 0 <= timestep <= 999:
        raise ValueError(f"timestep {timestep} is not from 0 to 999")
    cumulative = _signal_share(schedule)[timestep]
    return float(cumulative.sqrt()), float((1 - cumulative).sqrt())


@REJECTED_IMAGES.register("diffusion")
class Diffusion(PixelStrategy[DiffusionParameters]):
    """x_T = √ᾱ_T · x + √(1−ᾱ_T) · noise, with standard normal noise."""

    parameters = DiffusionParameters
    traits = Traits(random=True, keeps_size=True)

    def key(self) -> tuple[object, ...]:
        """Return timestep, and the schedule where it is not the released one."""
        timestep, schedule = self.settings.timestep, self.settings.schedule
        return (timestep,) if schedule == "sigmoid" else (timestep, schedule)

    def corrupt(self, pixel_values: Tensor, seed: int) -> Tensor:
        """Return the noisy pixel values in float32."""
        import torch

        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(pixel_values.shape, generator=draw)
        signal, spread = diffusion_coefficients(self.settings.timestep, self.settings.schedule)
        return signal * pixel_values.float() + spread * noise
