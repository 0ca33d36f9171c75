"""`diffusion`: forward diffusion noise on the processor's pixel values (paper, section 3.1)."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from chip_core.config.strategies import DiffusionParameters
from chip_core.data.rejected_images.base import PixelStrategy, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES

if TYPE_CHECKING:
    from torch import Tensor

#: Steps of every schedule.
STEPS = 1000
#: The first and the last beta: of the released CHiP code's sigmoid schedule, of DDPM's linear one,
#: and of Stable Diffusion's scaled linear one. Improved DDPM's cosine one has none.
BETAS = {"sigmoid": (1e-5, 5e-3), "linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}


def _betas(schedule: str) -> Tensor:
    """Return each step's beta in float32, to the bit as diffusers' DDPMScheduler has them.

    diffusers itself takes seconds to import, and a training needs no more of it than this.
    """
    import torch

    if schedule == "cosine":

        def kept(step: int) -> float:
            return math.cos((step / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - kept(step + 1) / kept(step), 0.999) for step in range(STEPS)]
        return torch.tensor(betas, dtype=torch.float32)
    first, last = BETAS[schedule]
    if schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, STEPS)) * (last - first) + first
    if schedule == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, STEPS, dtype=torch.float32) ** 2
    return torch.linspace(first, last, STEPS, dtype=torch.float32)


@functools.cache
def signal_share(schedule: str) -> Tensor:
    """Return ᾱ of each step, (1000,) in float32, as released."""
    cumulative: Tensor = (1.0 - _betas(schedule)).cumprod(0)
    return cumulative


def diffusion_coefficients(timestep: int, schedule: str = "sigmoid") -> tuple[float, float]:
    """Return (√ᾱ, √(1−ᾱ)) at a timestep of 1000, computed in float32.

    Raises:
        ValueError: the timestep is not from 0 to 999.
    """
    if not 0 <= timestep <= 999:
        raise ValueError(f"timestep {timestep} is not from 0 to 999")
    cumulative = signal_share(schedule)[timestep]
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
