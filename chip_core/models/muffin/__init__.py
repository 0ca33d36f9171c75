"""Muffin (Yu et al., 2023, arXiv 2310.00653), the paper's second base model.

BEiT-3 encodes the image; learned queries pass through it as its second modality, and their outputs
replace placeholder tokens in LLaMA. docs/muffin.md says how to use it.
"""

from __future__ import annotations

from chip_core.models.muffin.configuration import MuffinConfig as MuffinConfig
from chip_core.models.muffin.configuration import MuffinVisionConfig as MuffinVisionConfig
from chip_core.models.muffin.images import MuffinImageProcessor as MuffinImageProcessor
from chip_core.models.muffin.modeling import (
    MuffinForConditionalGeneration as MuffinForConditionalGeneration,
)
from chip_core.models.muffin.modeling import MuffinModel as MuffinModel
from chip_core.models.muffin.processing import MuffinProcessor as MuffinProcessor
from chip_core.models.muffin.vision import MuffinVisionModel as MuffinVisionModel


def register() -> None:
    """Register the family's `model_type` with transformers' Auto classes."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    for config in (MuffinConfig, MuffinVisionConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(MuffinVisionConfig, MuffinVisionModel, exist_ok=True)
    AutoModel.register(MuffinConfig, MuffinModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        MuffinConfig, MuffinForConditionalGeneration, exist_ok=True
    )
    AutoImageProcessor.register(
        MuffinConfig, slow_image_processor_class=MuffinImageProcessor, exist_ok=True
    )
    AutoProcessor.register(MuffinConfig, MuffinProcessor, exist_ok=True)
