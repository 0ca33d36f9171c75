"""Load a model's processor, even if optional libraries are missing, and its chat template.

The processors of some families (Qwen-VL, SmolVLM) are built with a video processor, which needs
torchvision or num2words. Images and text need neither: then the family's own class is built without
it.

Images are always resized with Pillow: torchvision's resizing, which transformers uses if it is
installed, gives pixels that differ by a thousandth, and fingerprints do not include what is
installed.

Prompts are written by a chat template with a place for an image. A processor has one of its own, in
one of four files, and its tokenizer may have another. The processor's is used if it can show an
image, otherwise the tokenizer's.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chip_core.models import own
from chip_core.utils.errors import TrialError, first_line
from chip_core.utils.files import read_json

#: The settings that a composed processor reads from a folder's processor_config.json.
_PROCESSOR_SETTINGS = (
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
        options: `revision`, if there is one.

    Raises:
        TrialError: none can be built.
    """
    from transformers import AutoProcessor

    register_family(source, options.get("revision"))
    try:
        processor = AutoProcessor.from_pretrained(
            source, trust_remote_code=trust_remote_code, **options
        )
        if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
            if _uses_torchvision(processor.image_processor):
                processor.image_processor = _load_pil_image_processor(
                    source, trust_remote_code, **options
                )
            return processor
        reason = f"AutoProcessor found only a {type(processor).__name__}"
    except (ImportError, ValueError, TypeError, OSError, AttributeError, KeyError) as error:
        reason = _first_line(error)
    try:
        return _load_from_parts(source, trust_remote_code, **options)
    except (ImportError, ValueError, TypeError, OSError, AttributeError, KeyError) as error:
        raise TrialError(
            f"{source} has no processor that can be built: {reason}; from its parts: "
            f"{_first_line(error)}"
        ) from None


def register_family(source: str, revision: str | None) -> None:
    """Make transformers know a model's family, if it is one of this package's.

    Args:
        source: the model's folder or hub name.
        revision: of a hub name; None: its newest.
    """
    config = read_source_json(source, "config.json", revision=revision)
    if isinstance(config, dict) and config.get("model_type") in own.FAMILIES:
        own.register()


def read_source_json(source: str, name: str, **options: Any) -> Any:
    """Return the content of a JSON file of a folder or hub name; None if it cannot be read.

    Args:
        source: the folder or the name.
        name: the file's name.
        options: `revision`, if there is one.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
        return None if path is None else read_json(Path(path))
    except (OSError, ValueError):
        return None


def compose_processor(
    model_type: str, image_processor: Any, tokenizer: Any, **settings: Any
) -> Any:
    """Build a family's processor from an image processor and a tokenizer, without video.

    Args:
        model_type: as in a model's config.json.
        image_processor: the family's image processor.
        tokenizer: the tokenizer, with the family's special tokens.
        settings: further arguments of the family's processor, `chat_template` included.
    """
    from transformers.processing_utils import ProcessorMixin

    family = _find_processor_class(model_type)
    if "video_processor" not in family.get_attributes():
        return family(image_processor=image_processor, tokenizer=tokenizer, **settings)
    module = importlib.import_module(family.__module__)
    if getattr(module, "num2words", ...) is None:
        module.num2words = _raise_no_video  # type: ignore[attr-defined]  # required, used only for video

    class WithoutVideo(family):  # type: ignore[misc, valid-type]
        @functools.wraps(family.__init__)  # type: ignore[misc]  # decides what is saved
        def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **settings)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def apply_chat_template(self, *args: Any, **options: Any) -> Any:
            # SmolVLM's own method asks its video processor for the number of frames.
            return ProcessorMixin.apply_chat_template(self, *args, **options)

    # Saved under the packaged name, so that a full installation reads the folder with its own
    # class.
    WithoutVideo.__name__ = family.__name__
    return WithoutVideo(image_processor, tokenizer, **settings)


def _load_from_parts(source: str, trust_remote_code: bool, **options: Any) -> Any:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import cached_file

    model_type = AutoConfig.from_pretrained(
        source, trust_remote_code=trust_remote_code, **options
    ).model_type
    image_processor = _load_pil_image_processor(source, trust_remote_code, **options)
    tokenizer = AutoTokenizer.from_pretrained(
        source, trust_remote_code=trust_remote_code, **options
    )

    def read_text(name: str) -> str | None:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
        if path is None:
            return None
        with open(path, encoding="utf-8") as file:
            return file.read()

    stored = json.loads(read_text("processor_config.json") or "{}")
    settings = {name: stored[name] for name in _PROCESSOR_SETTINGS if name in stored}
    template = (
        read_text("chat_template.jinja")
        or json.loads(read_text("chat_template.json") or "{}").get("chat_template")
        or stored.get("chat_template")
        or tokenizer.chat_template
    )
    return compose_processor(
        model_type, image_processor, tokenizer, chat_template=template, **settings
    )


def _load_pil_image_processor(source: str, trust_remote_code: bool, **options: Any) -> Any:
    """Return a source's image processor that needs only Pillow and numpy."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(
        source, backend="pil", trust_remote_code=trust_remote_code, **options
    )


def _uses_torchvision(image_processor: Any) -> bool:
    return any(
        base_class.__name__ == "TorchvisionBackend" for base_class in type(image_processor).__mro__
    )


def _find_processor_class(model_type: str) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None:
        raise ValueError(f"transformers has no processor for model_type {model_type}")
    return getattr(transformers, name)


def _raise_no_video(*_: Any) -> str:
    raise ImportError("num2words is needed for videos: pip install num2words")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


DEFAULT_TEMPLATE = "default"

#: Families whose processors put an image before a prompt, whatever the template writes.
_IMAGE_PREPENDING_FAMILIES = frozenset({"blip-2", "instructblip", "paligemma"})

#: The families' image tokens in templates, if no file names them.
_IMAGE_TOKENS = {
    **dict.fromkeys(("llava", "llava_next", "idefics3", "smolvlm"), "<image>"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|image_pad|>"),
}
_CONFIGURED_BY = ("tokenizer", "processor")  # whose configurations may name it

#: Variables that a template may use; their values do not matter.
_TEMPLATE_VARIABLES = {
    f"{name}_token": "" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
}

_NO_TEMPLATE = (
    "has no chat template to write prompts with: add its chat_template.jinja to the folder, or "
    "use an instruction-tuned model"
)

#: A template as a file stores it: a text, named ones, or a list of {name, template}.
StoredTemplate = Any


def find_template_problem(folder: Path, model_type: str) -> str | None:
    """Return what is wrong with the chat templates of a model's folder; None if nothing.

    A file that cannot be read is reported when the model is loaded.
    """
    if model_type in _IMAGE_PREPENDING_FAMILIES:
        return None
    legacy_file = folder / "chat_template.json"
    try:
        if legacy_file.is_file():
            read_json(legacy_file)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        return f"has a {legacy_file.name} that cannot be read ({reason}): copy it again"
    return _choose_template(
        _iter_folder_templates(folder), {}, _find_image_token(folder, model_type)
    )[1]


def set_template(processor: Any, read: Callable[[str], Any]) -> str | None:
    """Set the template that a processor's prompts are written with.

    Args:
        processor: its own template stays if it shows an image.
        read: returns the content of a JSON file next to the model; None if there is no such file.

    Returns:
        What is wrong; None if nothing.
    """
    tokenizer = processor.tokenizer
    stored = read("tokenizer_config.json")
    config_template = stored.get("chat_template") if isinstance(stored, dict) else None
    candidates = [
        processor.chat_template,
        getattr(tokenizer, "chat_template", None),
        config_template,
    ]
    tokens = {**_TEMPLATE_VARIABLES, **tokenizer.special_tokens_map}
    image = getattr(processor, "image_token", None)
    template, problem = _choose_template(candidates, tokens, None if image is None else str(image))
    if template is None and any(candidates) and _adds_image(processor):
        return None
    if template is not None and template != processor.chat_template:
        processor.chat_template = template
    return problem


def _choose_template(
    candidates: Iterable[StoredTemplate], tokens: Mapping[str, str], image: str | None = None
) -> tuple[StoredTemplate, str | None]:
    """Return the first template that shows an image, or else what is wrong with the first one."""
    problems = []
    for candidate in candidates:
        templates = _templates_by_name(candidate)
        if not templates:
            continue
        problems_by_name = {
            name: _find_template_problem(text, tokens, image) for name, text in templates.items()
        }
        usable = [name for name, problem in problems_by_name.items() if problem is None]
        if DEFAULT_TEMPLATE not in usable and len(usable) == 1:  # the others have other uses
            templates = {**templates, DEFAULT_TEMPLATE: templates[usable[0]]}
        elif DEFAULT_TEMPLATE not in usable:
            problems.append(_describe_unusable(problems_by_name))
            continue
        return (templates if len(templates) > 1 else templates[DEFAULT_TEMPLATE]), None
    return None, problems[0] if problems else _NO_TEMPLATE


def _describe_unusable(problems_by_name: Mapping[str, str | None]) -> str:
    """Return why none of some named templates is used."""
    problem = problems_by_name.get(DEFAULT_TEMPLATE)
    if problem is None and None not in problems_by_name.values():
        problem = next(iter(problems_by_name.values()))
    return problem or (
        f"has the chat templates {', '.join(problems_by_name)}, but none is called "
        f"{DEFAULT_TEMPLATE}: rename the one that writes prompts"
    )


def _templates_by_name(stored: StoredTemplate) -> dict[str, str]:
    """Return templates by name; none if what is stored is not a template."""
    if isinstance(stored, str):
        return {DEFAULT_TEMPLATE: stored} if stored.strip() else {}
    if isinstance(stored, list):
        stored = {
            entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)
        }
    if not isinstance(stored, dict):
        return {}
    return {
        name: text
        for name, text in stored.items()
        if isinstance(name, str) and isinstance(text, str)
    }


def _find_template_problem(
    template: str, tokens: Mapping[str, str], image: str | None
) -> str | None:
    """Return what is wrong with a template; None if it shows an image."""
    text_part = {"type": "text", "text": "What is this?"}
    try:
        rendered = _render(template, [{"type": "image"}, text_part], tokens)
    except Exception as error:  # a template is a program and may fail in any way
        reason = first_line(error)
        return (
            f"has a chat template that fails on a question with an image ({reason}): put that of "
            "the family's instruction-tuned model into chat_template.jinja"
        )
    try:
        text_only = _render(template, [text_part], tokens)
    except Exception:  # it need not return
        text_only = ""
    # A template that prints its content verbatim shows the words about an image, but no image.
    lacks_image = (
        rendered == text_only or "'type': 'image'" in rendered or '"type": "image"' in rendered
    )
    if not lacks_image and (image is None or image in rendered):
        return None
    return (
        "has a chat template without a place for an image: put that of the family's "
        "instruction-tuned model into chat_template.jinja"
    )


def _render(template: str, content: list[dict[str, str]], tokens: Mapping[str, str]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]],
        chat_template=template,
        add_generation_prompt=True,
        **{**_TEMPLATE_VARIABLES, **tokens},
    )
    text: str = texts[0]
    return text


def _adds_image(processor: Any) -> bool:
    """Return whether a processor adds an image although its template does not."""
    from PIL import Image

    try:
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
            add_generation_prompt=True,
        )
        encoded = processor(images=[Image.new("RGB", (64, 64))], text=[text], return_tensors="pt")
        return processor.image_token_id in encoded["input_ids"][0].tolist()
    except Exception:  # then it does not
        return False


def _iter_folder_templates(folder: Path) -> Iterator[StoredTemplate]:
    """Yield the templates of a folder, the processor's before the tokenizer's."""
    yield _read_json_key(folder / "processor_config.json")
    extra_templates = {
        file.stem: _read_text(file) for file in folder.glob("additional_chat_templates/*.jinja")
    }
    yield _read_json_key(folder / "chat_template.json")
    if (folder / "chat_template.jinja").is_file():
        yield {**extra_templates, DEFAULT_TEMPLATE: _read_text(folder / "chat_template.jinja")}
    else:
        yield extra_templates
    yield _read_json_key(folder / "tokenizer_config.json")


def _find_image_token(folder: Path, model_type: str) -> str | None:
    """Return what a folder's template writes for an image; None if unknown."""
    default = _IMAGE_TOKENS.get(model_type)
    configured = (
        _read_json_key(folder / f"{name}_config.json", "image_token") for name in _CONFIGURED_BY
    )
    return default and next((token for token in configured if isinstance(token, str)), default)


def _read_json_key(file: Path, key: str = "chat_template") -> StoredTemplate:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    return content.get(key) if isinstance(content, dict) else None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
