"""A model's processor, also where its packaged one needs what is not installed.

The processors of some families (Qwen-VL, SmolVLM) are made with a video processor, which needs
torchvision or num2words. Images and text need neither: there the family's own class is put
together without it.

Images are always resized by Pillow: torchvision's resizing, which transformers takes where it is
installed, gives other pixels by a thousandth, and what is installed is in no fingerprint.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

from chip_core.models import own
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_json

#: What a composed processor takes over of a folder's processor_config.json.
_SETTINGS = (
    "image_seq_len",
    "patch_size",
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
    "image_token",
)


def load_processor(source: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Return the processor of a folder or hub name.

    Args:
        source: the folder or the name.
        trust_remote_code: `model.trust_remote_code`.
        options: `revision`, where there is one.

    Raises:
        TrialError: none can be made.
    """
    from transformers import AutoProcessor

    own.register()
    try:
        processor = AutoProcessor.from_pretrained(
            source, trust_remote_code=trust_remote_code, **options
        )
        if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
            if _resizes_by_torchvision(processor.image_processor):
                processor.image_processor = _by_pillow(source, trust_remote_code, **options)
            return processor
        reason = f"AutoProcessor found a {type(processor).__name__} alone"
    except (ImportError, ValueError, TypeError, OSError, AttributeError, KeyError) as error:
        reason = _first_line(error)
    try:
        return _from_parts(source, trust_remote_code, **options)
    except (ImportError, ValueError, TypeError, OSError, AttributeError, KeyError) as error:
        raise TrialError(
            f"{source} has no processor that can be made: {reason}; from its parts: "
            f"{_first_line(error)}"
        ) from None


def json_beside(source: str, name: str, **options: Any) -> Any:
    """Return what a JSON file of a folder or hub name holds; None where it cannot be read.

    Args:
        source: the folder or the name.
        name: of the file.
        options: `revision`, where there is one.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
        return None if found is None else read_json(Path(found))
    except (OSError, ValueError):
        return None


def compose(model_type: str, image_processor: Any, tokenizer: Any, **settings: Any) -> Any:
    """Return a family's processor made of an image processor and a tokenizer, without video.

    Args:
        model_type: as in a model's config.json.
        image_processor: the family's image processor.
        tokenizer: the tokenizer, with the family's special tokens.
        settings: what else the family's processor takes, `chat_template` included.
    """
    from transformers.processing_utils import ProcessorMixin

    family = _family(model_type)
    if "video_processor" not in family.get_attributes():
        return family(image_processor=image_processor, tokenizer=tokenizer, **settings)
    module = importlib.import_module(family.__module__)
    if getattr(module, "num2words", ...) is None:
        module.num2words = _no_video  # type: ignore[attr-defined]  # asked for, used on video alone

    class WithoutVideo(family):  # type: ignore[misc, valid-type]
        @functools.wraps(family.__init__)  # type: ignore[misc]  # its signature says what is saved
        def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **settings)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def apply_chat_template(self, *given: Any, **options: Any) -> Any:
            # SmolVLM's own asks its video processor for the number of frames.
            return ProcessorMixin.apply_chat_template(self, *given, **options)

    # Saved under the packaged name: a whole installation reads the folder with its own class.
    WithoutVideo.__name__ = family.__name__
    return WithoutVideo(image_processor, tokenizer, **settings)


def _from_parts(source: str, trusted: bool, **options: Any) -> Any:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import cached_file

    model_type = AutoConfig.from_pretrained(source, trust_remote_code=trusted, **options).model_type
    image_processor = _by_pillow(source, trusted, **options)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trusted, **options)

    def text(name: str) -> str | None:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
        if path is None:
            return None
        with open(path, encoding="utf-8") as file:
            return file.read()

    stored = json.loads(text("processor_config.json") or "{}")
    settings = {name: stored[name] for name in _SETTINGS if name in stored}
    template = (
        text("chat_template.jinja")
        or json.loads(text("chat_template.json") or "{}").get("chat_template")
        or stored.get("chat_template")
        or tokenizer.chat_template
    )
    return compose(model_type, image_processor, tokenizer, chat_template=template, **settings)


def _by_pillow(source: str, trusted: bool, **options: Any) -> Any:
    """Return a source's image processor that takes nothing but Pillow and numpy."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(
        source, backend="pil", trust_remote_code=trusted, **options
    )


def _resizes_by_torchvision(image_processor: Any) -> bool:
    return any(each.__name__ == "TorchvisionBackend" for each in type(image_processor).__mro__)


def _family(model_type: str) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None:
        raise ValueError(f"transformers knows no processor for model_type {model_type}")
    return getattr(transformers, name)


def _no_video(*_: Any) -> str:
    raise ImportError("num2words is needed for videos: pip install num2words")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
