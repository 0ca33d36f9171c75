from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chip_core.config.trial import RejectedImageConfig
from chip_core.data.rejected_images import RejectedImages, diffusion_coefficients
from chip_core.data.rejected_images.diffusion import signal_share
from chip_core.utils.seeding import generator


def test_coefficients_equal_the_released_schedule(oracles: Path) -> None:
    cases = json.loads((oracles / "losses" / "diffusion_schedule.json").read_text())
    for timestep, expected in cases.items():
        assert diffusion_coefficients(int(timestep)) == pytest.approx(expected, abs=1e-6)
    print(f"coefficients of the released schedule: {len(cases)} of {len(cases)}")


def test_the_schedule_is_the_sigmoid_one() -> None:
    # beta_t = 1e-5 + (5e-3 − 1e-5) σ(x_t), x from −6 to 6 in 1000 steps; ᾱ = Π (1 − beta)
    betas = 1e-5 + (5e-3 - 1e-5) * torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64))
    cumulative = torch.cumprod(1 - betas, 0)
    signal, spread = diffusion_coefficients(500)
    assert signal == pytest.approx(cumulative[500].sqrt().item(), abs=1e-6)
    assert signal**2 + spread**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_that_is_none_is_told(timestep: int) -> None:
    with pytest.raises(ValueError, match=f"timestep {timestep} is not from 0 to 999"):
        diffusion_coefficients(timestep)


def test_noise_is_a_function_of_its_key() -> None:
    config = RejectedImageConfig(strategy="diffusion")
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)

    def noisy(seed: int, sample: str) -> torch.Tensor:
        return RejectedImages(config, seed=seed).corrupt(pixels, sample=sample)

    assert torch.equal(noisy(0, "a"), noisy(0, "a"))
    assert not torch.equal(noisy(0, "a"), noisy(0, "b"))
    assert not torch.equal(noisy(0, "a"), noisy(1, "a"))
    signal, spread = diffusion_coefficients(500)
    noise = (noisy(0, "a") - signal * pixels) / spread
    # 192 standard normal numbers: mean within 4/√192, variance within 4·√(2/192)
    assert abs(noise.mean().item()) < 0.29
    assert abs(noise.var().item() - 1) < 0.41


def test_the_draw_is_the_one_that_recorded_figures_were_made_with() -> None:
    # The key is (strategy, timestep, seed, sample); redraw and the released schedule add nothing.
    config = RejectedImageConfig(strategy="diffusion", diffusion={"timestep": 300})
    pixels = torch.ones(1, 3, 4, 4)
    draw = generator("rejected_image", "diffusion", 300, 7, "train/5")
    signal, spread = diffusion_coefficients(300)
    expected = signal * pixels + spread * torch.randn(pixels.shape, generator=draw)
    made = RejectedImages(config, seed=7).corrupt(pixels, sample="train/5", epoch=2)
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        ("linear", 4.0e-5),  # ᾱ_999 of DDPM, Ho et al. 2020, section 4: 4e-5
        ("scaled_linear", 4.66e-3),  # of Stable Diffusion
        ("cosine", 2.4e-9),  # beta is cut at 0.999
        ("sigmoid", 8.15e-2),
    ],
)
def test_every_schedule_falls_from_all_signal_to_its_end(schedule: str, last: float) -> None:
    shares = [diffusion_coefficients(step, schedule)[0] ** 2 for step in range(0, 1000, 37)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.999
    assert diffusion_coefficients(999, schedule)[0] ** 2 == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("sigmoid", {"beta_schedule": "sigmoid", "beta_start": 1e-5, "beta_end": 5e-3}),
        ("linear", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (
            "scaled_linear",
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_every_schedule_is_that_of_diffusers_to_the_bit(
    schedule: str, theirs: dict[str, Any]
) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, **theirs)
    assert torch.equal(signal_share(schedule), scheduler.alphas_cumprod)
