"""The strategies, one class each.

They act on the RGB image, except `diffusion`, which adds forward-diffusion noise to the processor's
pixel values (paper, section 3.1). All but `inpaint`, a counterfactual image, need no model.

Differences from the released code: its `black` is the mean grey, here `mean`. It sets the
normalised tensor to 0; here `mean` is an image of 8-bit values, so normalised values are within
0.5/255 of a deviation's share of 0. Its `random` can draw the image itself. Its `crop` draws a
window of at most 320 × 240 with its sides swapped, and leaves the scaling to the processor; it also
leaves an image unchanged that is no larger than the window.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFilter

from chip_core.config.strategies import (
    BlurParameters,
    CropParameters,
    DiffusionParameters,
    InpaintParameters,
    LightingParameters,
    MixupParameters,
    NoParameters,
    OcclusionParameters,
    RotateParameters,
)
from chip_core.data.rejected_images.base import (
    REJECTED_IMAGES,
    ImageStrategy,
    PixelStrategy,
    Source,
    Traits,
)
from chip_core.data.rejected_images.images import (
    draw_content_boxes,
    has_same_pixels,
    limit_pixels,
    to_rgb_image,
)
from chip_core.utils.errors import TrialError, first_line
from chip_core.utils.files import expand_path, hash_file

if TYPE_CHECKING:
    from torch import Tensor


@REJECTED_IMAGES.register("black")
class Black(ImageStrategy[NoParameters]):
    """A black image."""

    traits = Traits(random=False, keeps_size=True, void_where="an image that is black already")

    def reject(self, source: Source) -> Image.Image:
        """Return a black image of the same size."""
        return Image.new("RGB", source.image.size)


@REJECTED_IMAGES.register("blur")
class Blur(ImageStrategy[BlurParameters]):
    """Gaussian blur, its width relative to the image and at least one pixel."""

    parameters = BlurParameters
    traits = Traits(random=False, keeps_size=True, void_where="an image without detail")

    def reject(self, source: Source) -> Image.Image:
        """Return the blurred image, of the same size."""
        radius = max(1.0, self.settings.radius * min(source.image.size))
        return source.image.filter(ImageFilter.GaussianBlur(radius))


@REJECTED_IMAGES.register("crop")
class Crop(ImageStrategy[CropParameters]):
    """A random window."""

    parameters = CropParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        void_where="an image no larger than the window; one without detail",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return a window of the image at the image's size."""
        width, height = source.image.size
        window_width, window_height = self._window_size(width, height)
        if (window_width, window_height) == (width, height):
            return source.image
        rng = source.numbers()
        left = int(rng.random() * (width - window_width + 1))
        top = int(rng.random() * (height - window_height + 1))
        window = (left, top, left + window_width, top + window_height)
        return source.image.resize((width, height), Image.Resampling.BICUBIC, box=window)

    def _window_size(self, width: int, height: int) -> tuple[int, int]:
        share = self.settings.share
        if share is None:
            return min(width, self.settings.width), min(height, self.settings.height)
        scale = math.sqrt(share)
        return max(1, round(width * scale)), max(1, round(height * scale))


@REJECTED_IMAGES.register("given")
class Given(ImageStrategy[NoParameters]):
    """The sample's own rejected image."""

    traits = Traits(
        random=False,
        keeps_size=False,
        needs_given=True,
        void_where="a sample whose rejected image is the true one",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the given image, of its own size."""
        if source.given is None:
            raise TrialError(
                f"sample {source.id} has no rejected image of its own: "
                "choose another rejected_image.strategy, or add the image to the data"
            )
        return source.given


@REJECTED_IMAGES.register("lighting")
class Lighting(ImageStrategy[LightingParameters]):
    """All values times a gain, or divided by it; values above white are clipped."""

    parameters = LightingParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        void_where="an image that is black, or white and made brighter",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the image under the drawn light, of the same size."""
        rng = source.numbers()
        low, high = self.settings.low, self.settings.high
        gain = low + rng.random() * (high - low)
        factor = gain if rng.random() < 0.5 else 1 / gain
        table = [min(255, round(value * factor)) for value in range(256)]
        return source.image.point(table * 3)


@REJECTED_IMAGES.register("mean")
class Mean(ImageStrategy[NoParameters]):
    """One colour: the processor's image mean."""

    traits = Traits(random=False, keeps_size=True, void_where="an image of that colour already")

    def reject(self, source: Source) -> Image.Image:
        """Return an image of the mean colour, of the same size."""
        return Image.new("RGB", source.image.size, source.mean)


@REJECTED_IMAGES.register("mixup")
class Mixup(ImageStrategy[MixupParameters]):
    """(1 − weight) · image + weight · another image, scaled to the same size."""

    parameters = MixupParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        needs_others=True,
        void_where="an image that another one equals when scaled to its size",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the mixture, of the same size."""
        other = pick_other_image(source).resize(source.image.size, Image.Resampling.BICUBIC)
        return Image.blend(source.image, other, self.settings.weight)


@REJECTED_IMAGES.register("occlusion")
class Occlusion(ImageStrategy[OcclusionParameters]):
    """Boxes of one colour, drawn where the image has edges."""

    parameters = OcclusionParameters
    traits = Traits(
        random=True, keeps_size=True, void_where="an image of the boxes' colour already"
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the image with boxes on it, of the same size."""
        settings, image = self.settings, source.image.copy()
        colour = source.mean if settings.fill == "mean" else (0, 0, 0)
        boxes = draw_content_boxes(
            source.image, source.numbers(), count=settings.boxes, share=settings.share
        )
        for box in boxes:
            image.paste(colour, box)
        return image


@REJECTED_IMAGES.register("random")
class RandomImage(ImageStrategy[NoParameters]):
    """Another sample's image that shows another picture."""

    traits = Traits(random=True, keeps_size=False, needs_others=True)

    def reject(self, source: Source) -> Image.Image:
        """Return another image, of its own size."""
        return pick_other_image(source)


@REJECTED_IMAGES.register("rotate")
class Rotate(ImageStrategy[RotateParameters]):
    """A turn to the left; the corners that come into view are black."""

    parameters = RotateParameters
    traits = Traits(
        random=True, keeps_size=True, void_where="an image of one pixel; one that is black"
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the turned image, of the same size."""
        low, high = self.settings.low, self.settings.high
        angle = low + source.numbers().random() * (high - low)
        return source.image.rotate(angle, Image.Resampling.BICUBIC)


#: Steps of every schedule.
STEPS = 1000
#: The first and the last beta of each schedule: sigmoid (the released CHiP code), linear (DDPM) and
#: scaled linear (Stable Diffusion). Improved DDPM's cosine schedule has none.
BETAS = {"sigmoid": (1e-5, 5e-3), "linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}


def _compute_betas(schedule: str) -> Tensor:
    """Return each step's beta in float32, bit-identical to diffusers' DDPMScheduler.

    diffusers itself takes seconds to import, and a training needs nothing else of it.
    """
    import torch

    if schedule == "cosine":

        def signal_level(step: int) -> float:
            return math.cos((step / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [
            min(1 - signal_level(step + 1) / signal_level(step), 0.999) for step in range(STEPS)
        ]
        return torch.tensor(betas, dtype=torch.float32)
    first, last = BETAS[schedule]
    if schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, STEPS)) * (last - first) + first
    if schedule == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, STEPS, dtype=torch.float32) ** 2
    return torch.linspace(first, last, STEPS, dtype=torch.float32)


@functools.cache
def compute_cumulative_alphas(schedule: str) -> Tensor:
    """Return ᾱ of each step, (1000,) in float32, as in the released code."""
    cumulative: Tensor = (1.0 - _compute_betas(schedule)).cumprod(0)
    return cumulative


def compute_diffusion_coefficients(timestep: int, schedule: str = "sigmoid") -> tuple[float, float]:
    """Return (√ᾱ, √(1−ᾱ)) at a timestep of 1000, computed in float32.

    Raises:
        ValueError: the timestep is not from 0 to 999.
    """
    if not 0 <= timestep <= 999:
        raise ValueError(f"timestep {timestep} is not from 0 to 999")
    cumulative = compute_cumulative_alphas(schedule)[timestep]
    return float(cumulative.sqrt()), float((1 - cumulative).sqrt())


@REJECTED_IMAGES.register("diffusion")
class Diffusion(PixelStrategy[DiffusionParameters]):
    """x_T = √ᾱ_T · x + √(1−ᾱ_T) · noise, with standard normal noise."""

    parameters = DiffusionParameters
    traits = Traits(random=True, keeps_size=True)

    def key(self) -> tuple[object, ...]:
        """Return the timestep, and the schedule if it is not the released one."""
        timestep, schedule = self.settings.timestep, self.settings.schedule
        return (timestep,) if schedule == "sigmoid" else (timestep, schedule)

    def corrupt(self, pixel_values: Tensor, seed: int) -> Tensor:
        """Return the noisy pixel values in float32."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(pixel_values.shape, generator=generator)
        signal, noise_scale = compute_diffusion_coefficients(
            self.settings.timestep, self.settings.schedule
        )
        return signal * pixel_values.float() + noise_scale * noise


#: Sides that every usual pipeline accepts: 8 pixels per latent, 8 latents at the U-Net's bottom.
SIDE_MULTIPLE = 64


@REJECTED_IMAGES.register("inpaint")
class Inpaint(ImageStrategy[InpaintParameters]):
    """Boxes over content, repainted; the rest is unchanged."""

    parameters = InpaintParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        void_where="an image that the pipeline paints as it was",
    )

    @classmethod
    def identity(cls, settings: InpaintParameters) -> dict[str, Any]:
        """Return the settings with the pipeline's content instead of its location."""
        values = settings.model_dump(mode="json")
        values["pipeline"] = _hash_folder(str(_find_pipeline_folder(values.pop("path"))))
        return values

    def reject(self, source: Source) -> Image.Image:
        """Return the image with its boxes repainted, of the same size."""
        import torch

        settings, image = self.settings, source.image
        mask = Image.new("L", image.size)
        boxes = draw_content_boxes(
            image, source.numbers(), count=settings.boxes, share=settings.share
        )
        for box in boxes:
            mask.paste(255, box)
        size = _compute_working_size(image.size, settings.side)
        painted = _load_pipeline(str(_find_pipeline_folder(settings.path)))(
            prompt=settings.prompt,
            image=image.resize(size, Image.Resampling.BICUBIC),
            mask_image=mask.resize(size, Image.Resampling.NEAREST),
            width=size[0],
            height=size[1],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(source.seed),
        ).images[0]
        painted = painted.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
        return Image.composite(painted, image, mask)


def _compute_working_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    width, height = (
        max(1, round(pixels * scale / SIDE_MULTIPLE)) * SIDE_MULTIPLE for pixels in size
    )
    return width, height


def _find_pipeline_folder(path: str | None) -> Path:
    """Return the pipeline's folder.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        raise ValueError("rejected_image.inpaint.path is missing: name a folder with a pipeline")
    folder = expand_path(path)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"rejected_image.inpaint.path: no diffusers pipeline in {folder}")
    return folder.absolute()


def pick_other_image(source: Source) -> Image.Image:
    """Return another sample's training image that does not show the same picture.

    Raises:
        TrialError: there is none.
    """
    rng, count = source.numbers(), len(source.others)
    draws = [int(rng.random() * count) for _ in range(32 if count else 0)]
    # Nearly always the first or second draw; the loop is for data with hardly a second picture.
    for index in [*draws, *range(count)]:
        other = source.others[index]
        if other.id == source.id:
            continue
        image = limit_pixels(to_rgb_image(other.image))
        if not has_same_pixels(image, source.image):
            return image
    raise TrialError(f"no training image differs from that of {source.id}: give more data")


@functools.cache
def _hash_folder(folder: str) -> str:
    """Return a hash of the content of a pipeline's folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        file_digest = bytes.fromhex(hash_file(file))
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file_digest)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _load_pipeline(folder: str) -> Any:
    """Return the pipeline, on the GPU if there is one. No code of the folder is run."""
    import torch
    from diffusers import AutoPipelineForInpainting

    parts = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    # A safety checker would return black images, and no person sees these images.
    checker = {"safety_checker": None} if "safety_checker" in parts else {}
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, **checker
        )
    except (OSError, ValueError, ImportError) as error:
        reason = first_line(error)
        raise TrialError(f"rejected_image.inpaint.path: {folder}: {reason}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
