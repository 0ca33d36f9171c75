"""What each strategy does, beyond what all are held to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from chip_core.config.trial import RejectedImageConfig
from chip_core.data.rejected_images import RejectedImage, RejectedImageMaker
from chip_core.data.rejected_images.conformance import sample_image
from chip_core.data.rejected_images.images import (
    draw_content_boxes,
    has_same_pixels,
    limit_pixels,
    to_rgb_image,
)
from chip_core.data.rejected_images.strategies import (
    compute_cumulative_alphas,
    compute_diffusion_coefficients,
)
from chip_core.shapes.processor import build_processor
from chip_core.utils.errors import TrialError
from chip_core.utils.seeding import make_generator


@dataclass(frozen=True)
class Sample:
    id: str
    image: Image.Image


def make_rejected_image(image: Image.Image, settings: Any, **given: Any) -> RejectedImage:
    config = RejectedImageConfig.model_validate(settings)
    seed = given.pop("seed", 0)
    return RejectedImageMaker(config, seed=seed).image(Sample("x", image), **given)


def test_black_is_black() -> None:
    assert make_rejected_image(sample_image(0), "black").image.getextrema() == ((0, 0),) * 3


def test_the_mean_is_0_once_it_is_normalised() -> None:
    # 8 bits: a value is within 0.5/255 of the mean, over the smallest deviation, 0.261
    processor = build_processor().image_processor
    maker = RejectedImageMaker(
        RejectedImageConfig(strategy="mean"), image_mean=processor.image_mean
    )
    made = maker.image(Sample("x", sample_image(0)))
    values = processor(made.image, return_tensors="pt")["pixel_values"]
    assert values.abs().max() <= 0.5 / 255 / 0.2613 + 1e-6


def test_released_crop_leaves_small_images_and_says_so() -> None:
    assert make_rejected_image(sample_image(0, (320, 240)), "crop").void
    assert not make_rejected_image(sample_image(0, (321, 240)), "crop").void
    small = sample_image(0, (48, 48))
    assert make_rejected_image(small, "crop").image is small
    assert not make_rejected_image(small, {"strategy": "crop", "crop": {"share": 0.25}}).void


def test_a_crop_is_a_part_of_the_image() -> None:
    # Columns of one value each: a window of a quarter of the area has half the columns.
    image = Image.linear_gradient("L").rotate(90).convert("RGB")
    made = make_rejected_image(image, {"strategy": "crop", "crop": {"share": 0.25}}).image
    low, high = made.convert("L").getextrema()
    assert high - low == pytest.approx(127, abs=4)


@pytest.mark.parametrize("seed", range(8))
def test_rotation_lies_between_its_angles(seed: int) -> None:
    # A bar from the centre to the right points up and to the right after 10–80 degrees.
    image = Image.new("RGB", (201, 201))
    image.paste("white", (101, 98, 200, 103))
    made = make_rejected_image(image, "rotate", seed=seed).image.convert("L")
    left, top, right, bottom = made.point(lambda value: 255 if value > 128 else 0).getbbox()
    across, up = right - 100, 100 - top
    assert bottom <= 106
    assert left >= 94
    # within 3 degrees for the bar's width
    assert 7 <= torch.rad2deg(torch.atan2(torch.tensor(up), torch.tensor(across))) <= 83


def test_random_is_never_the_image_itself() -> None:
    image = sample_image(0)
    others = [Sample("x", image), Sample("same picture", image), Sample("y", sample_image(1))]
    for seed in range(20):
        assert has_same_pixels(
            make_rejected_image(image, "random", others=others, seed=seed).image, sample_image(1)
        )
    with pytest.raises(TrialError, match="no training image differs from that of x"):
        make_rejected_image(image, "random", others=others[:2])


def test_random_reaches_every_other() -> None:
    others = [Sample(str(number), sample_image(number, (40, 30))) for number in range(5)]
    drawn = {
        make_rejected_image(sample_image(9), "random", others=others, seed=seed).image.tobytes()
        for seed in range(60)
    }
    assert len(drawn) == 5


def test_mixup_is_the_weighted_sum() -> None:
    image, other = Image.new("RGB", (8, 6), (200, 0, 0)), Image.new("RGB", (3, 3), (0, 100, 0))
    settings = {"strategy": "mixup", "mixup": {"weight": 0.25}}
    made = make_rejected_image(image, settings, others=[Sample("y", other)]).image
    assert made.getpixel((4, 3)) == (150, 25, 0)  # 0.75 · 200, 0.25 · 100


def test_lighting_darkens_and_brightens() -> None:
    grey = Image.new("RGB", (4, 4), (60, 60, 60))
    values = [
        make_rejected_image(grey, "lighting", seed=seed).image.getpixel((0, 0))[0]
        for seed in range(40)
    ]
    dark = [value for value in values if value < 60]
    assert 10 <= len(dark) <= 30
    assert min(dark) >= 9  # 60 · 0.15
    assert max(dark) <= 24  # 60 · 0.4
    assert min(value for value in values if value > 60) >= 150  # 60 / 0.4


def test_boxes_lie_on_content_and_within_their_share() -> None:
    image = Image.new("RGB", (200, 200), "white")
    image.paste(sample_image(2, (60, 60)), (130, 10))
    hits = 0
    for seed in range(20):
        settings = {"strategy": "occlusion", "occlusion": {"boxes": 1, "share": 0.1}}
        made = make_rejected_image(image, settings, seed=seed)
        changed = ImageChops.difference(made.image, image).convert("L")
        left, top, right, bottom = changed.getbbox()
        assert (right - left) * (bottom - top) <= 0.105 * 200 * 200  # rounding of the sides
        hits += left < 190 and right > 130 and top < 70
    assert hits >= 17  # by chance a box of a tenth would touch that corner in about half


def test_boxes_fit_images_of_any_size() -> None:
    numbers = Random(0)
    for size in ((1, 1), (1, 50), (300, 2), (17, 31)):
        for left, top, right, bottom in draw_content_boxes(
            sample_image(0, size), numbers, count=5, share=1
        ):
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]


def test_blur_keeps_the_mean_and_loses_the_detail() -> None:
    image = sample_image(3)
    made = make_rejected_image(image, "blur").image
    before, after = ImageStat.Stat(image.convert("L")), ImageStat.Stat(made.convert("L"))
    assert after.mean[0] == pytest.approx(before.mean[0], abs=2)
    assert after.stddev[0] < before.stddev[0]


def test_the_strategy_given_takes_the_samples_own_image() -> None:
    own = sample_image(7, (30, 20))
    assert has_same_pixels(
        make_rejected_image(sample_image(0), "given", given=own.convert("RGBA")).image, own
    )
    with pytest.raises(TrialError, match="sample x has no rejected image of its own"):
        make_rejected_image(sample_image(0), "given")


def test_inpaint_changes_its_boxes_alone(pipeline: Path) -> None:
    settings = {
        "strategy": "inpaint",
        "inpaint": {"path": str(pipeline), "steps": 2, "side": 64, "boxes": 1, "share": 0.1},
    }
    image = sample_image(0)
    changed = ImageChops.difference(make_rejected_image(image, settings).image, image)
    left, top, right, bottom = changed.getbbox()
    assert (right - left) * (bottom - top) <= 0.105 * 400 * 300


def test_a_broken_pipeline_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "None"}')
    settings = {"strategy": "inpaint", "inpaint": {"path": str(tmp_path)}}
    with pytest.raises(TrialError, match=r"inpaint.path: \S+: .+") as raised:
        make_rejected_image(sample_image(0), settings)
    assert "\n" not in str(raised.value)


def test_wide_grey_is_scaled_not_cut() -> None:
    wide = Image.new("I;16", (2, 2), 32896)  # half of 65535
    assert to_rgb_image(wide).getpixel((0, 0)) == (128, 128, 128)


def test_an_image_without_a_way_to_rgb_is_told() -> None:
    with pytest.raises(TrialError, match="an image of mode F cannot be read as RGB .a pixel is"):
        to_rgb_image(Image.new("F", (2, 2), float("nan")))


def test_huge_images_are_worked_on_smaller_and_come_back_whole() -> None:
    huge = Image.new("RGB", (60_000, 400), "red")
    work = limit_pixels(huge)
    assert work.width * work.height <= 2**24
    assert work.width / work.height == pytest.approx(150, rel=0.02)
    assert make_rejected_image(huge, "mean").image.size == (60_000, 400)


def test_coefficients_equal_the_released_schedule(oracles: Path) -> None:
    cases = json.loads((oracles / "losses" / "diffusion_schedule.json").read_text())
    for timestep, expected in cases.items():
        assert compute_diffusion_coefficients(int(timestep)) == pytest.approx(expected, abs=1e-6)
    print(f"coefficients of the released schedule: {len(cases)} of {len(cases)}")


def test_the_schedule_is_the_sigmoid_one() -> None:
    # beta_t = 1e-5 + (5e-3 − 1e-5) σ(x_t), x from −6 to 6 in 1000 steps; ᾱ = Π (1 − beta)
    betas = 1e-5 + (5e-3 - 1e-5) * torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64))
    cumulative = torch.cumprod(1 - betas, 0)
    signal, spread = compute_diffusion_coefficients(500)
    assert signal == pytest.approx(cumulative[500].sqrt().item(), abs=1e-6)
    assert signal**2 + spread**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_that_is_none_is_told(timestep: int) -> None:
    with pytest.raises(ValueError, match=f"timestep {timestep} is not from 0 to 999"):
        compute_diffusion_coefficients(timestep)


def test_noise_is_a_function_of_its_key() -> None:
    config = RejectedImageConfig(strategy="diffusion")
    pixels = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)

    def noisy(seed: int, sample: str) -> torch.Tensor:
        return RejectedImageMaker(config, seed=seed).corrupt(pixels, sample=sample)

    assert torch.equal(noisy(0, "a"), noisy(0, "a"))
    assert not torch.equal(noisy(0, "a"), noisy(0, "b"))
    assert not torch.equal(noisy(0, "a"), noisy(1, "a"))
    signal, spread = compute_diffusion_coefficients(500)
    noise = (noisy(0, "a") - signal * pixels) / spread
    # 192 standard normal numbers: mean within 4/√192, variance within 4·√(2/192)
    assert abs(noise.mean().item()) < 0.29
    assert abs(noise.var().item() - 1) < 0.41


def test_the_draw_is_the_one_that_recorded_figures_were_made_with() -> None:
    # The key is (strategy, timestep, seed, sample); redraw and the released schedule add nothing.
    config = RejectedImageConfig(strategy="diffusion", diffusion={"timestep": 300})
    pixels = torch.ones(1, 3, 4, 4)
    draw = make_generator("rejected_image", "diffusion", 300, 7, "train/5")
    signal, spread = compute_diffusion_coefficients(300)
    expected = signal * pixels + spread * torch.randn(pixels.shape, generator=draw)
    made = RejectedImageMaker(config, seed=7).corrupt(pixels, sample="train/5", epoch=2)
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
    shares = [compute_diffusion_coefficients(step, schedule)[0] ** 2 for step in range(0, 1000, 37)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.999
    assert compute_diffusion_coefficients(999, schedule)[0] ** 2 == pytest.approx(last, rel=0.02)


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
    assert torch.equal(compute_cumulative_alphas(schedule), scheduler.alphas_cumprod)
