from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from chip_core.config import RejectedImageConfig
from chip_core.data.rejected_images import corrupt_pixels, diffusion_coefficients, rejected_image


def test_coefficients_equal_the_released_schedule(oracles: Path) -> None:
    cases = json.loads((oracles / "losses" / "diffusion_schedule.json").read_text())
    for timestep, expected in cases.items():
        assert diffusion_coefficients(int(timestep)) == pytest.approx(expected, abs=1e-6)


def test_the_schedule_is_the_sigmoid_one() -> None:
    # beta_t = 1e-5 + (5e-3 − 1e-5) σ(x_t), x from −6 to 6 in 1000 steps; ᾱ = Π (1 − beta)
    betas = 1e-5 + (5e-3 - 1e-5) * torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64))
    cumulative = torch.cumprod(1 - betas, 0)
    signal, spread = diffusion_coefficients(500)
    assert signal == pytest.approx(cumulative[500].sqrt().item(), abs=1e-6)
    assert signal**2 + spread**2 == pytest.approx(1, abs=1e-6)


def test_noise_is_a_function_of_its_key() -> None:
    config = RejectedImageConfig(strategy="diffusion")
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)

    def noisy(seed: int, sample: str) -> torch.Tensor:
        return corrupt_pixels(pixels, config, seed=seed, sample=sample)

    assert torch.equal(noisy(0, "a"), noisy(0, "a"))
    assert not torch.equal(noisy(0, "a"), noisy(0, "b"))
    assert not torch.equal(noisy(0, "a"), noisy(1, "a"))
    signal, spread = diffusion_coefficients(500)
    noise = (noisy(0, "a") - signal * pixels) / spread
    # 192 standard normal numbers: mean within 4/√192, variance within 4·√(2/192)
    assert abs(noise.mean().item()) < 0.29
    assert abs(noise.var().item() - 1) < 0.41


def test_black_is_black_and_keeps_the_size() -> None:
    black = rejected_image(Image.new("RGB", (5, 7), "red"), RejectedImageConfig(strategy="black"))
    assert black.size == (5, 7)
    assert black.getextrema() == ((0, 0), (0, 0), (0, 0))
