"""`inpaint`: a counterfactual image, boxes over its content repainted by a diffusers pipeline."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from PIL import Image

from chip_core.config.strategies import InpaintParameters
from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.images import content_boxes
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.utils.errors import TrialError, brief
from chip_core.utils.files import expand_path

#: Sides that every usual pipeline takes: 8 pixels a latent, 8 latents at the U-Net's bottom.
MULTIPLE = 64


@REJECTED_IMAGES.register("inpaint")
class Inpaint(ImageStrategy[InpaintParameters]):
    """Boxes over content, painted anew; the rest is left as it is."""

    parameters = InpaintParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        void_where="an image that the pipeline paints as it was",
    )

    @classmethod
    def identity(cls, settings: InpaintParameters) -> dict[str, Any]:
        """Return the settings with the pipeline's content in place of where it lies."""
        values = settings.model_dump(mode="json")
        values["pipeline"] = _content(str(_folder(values.pop("path"))))
        return values

    def reject(self, source: Source) -> Image.Image:
        """Return the image with its boxes repainted, of the same size."""
        import torch

        settings, image = self.settings, source.image
        mask = Image.new("L", image.size)
        boxes = content_boxes(image, source.numbers(), count=settings.boxes, share=settings.share)
        for box in boxes:
            mask.paste(255, box)
        size = _working_size(image.size, settings.side)
        painted = _pipeline(str(_folder(settings.path)))(
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


def _working_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    width, height = (max(1, round(pixels * scale / MULTIPLE)) * MULTIPLE for pixels in size)
    return width, height


def _folder(path: str | None) -> Path:
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


@functools.cache
def _content(folder: str) -> str:
    """Return a hash of all that a pipeline's folder holds."""
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            inner = hashlib.file_digest(opened, "sha256").digest()
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + inner)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _pipeline(folder: str) -> Any:
    """Return the pipeline, on the GPU where there is one. No code of the folder is run."""
    import torch
    from diffusers import AutoPipelineForInpainting

    parts = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    # A safety checker answers with black images; what is painted here is seen by no one.
    checker = {"safety_checker": None} if "safety_checker" in parts else {}
    try:
        pipeline = AutoPipelineForInpainting.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, **checker
        )
    except (OSError, ValueError, ImportError) as error:
        reason = brief(error)
        raise TrialError(f"rejected_image.inpaint.path: {folder}: {reason}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
