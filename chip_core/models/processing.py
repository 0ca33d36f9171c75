"""Load a model's processor, even if optional libraries are missing, and its chat template.

The processors of some families (Qwen-VL, SmolVLM) are built with a video processor, which needs
torchvision or num2words. Images and text need neither: then the family's own class is built without
it.

Images are always resized with Pillow: torchvision's resizing, which transformers uses if it is
installed, gives pixels that differ by a thousandth, and what is installed is in no fingerprint.

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
        options: `revision`, if there is one.

    Raises:
        TrialError: none can be built.
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
    """Return the content of a JSON file of a folder or hub name; None if it cannot be read.

    Args:
        source: the folder or the name.
        name: the file's name.
        options: `revision`, if there is one.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
        return None if found is None else read_json(Path(found))
    except (OSError, ValueError):
        return None


def compose(model_type: str, image_processor: Any, tokenizer: Any, **settings: Any) -> Any:
    """Build a family's processor from an image processor and a tokenizer, without video.

    Args:
        model_type: as in a model's config.json.
        image_processor: the family's image processor.
        tokenizer: the tokenizer, with the family's special tokens.
        settings: further arguments of the family's processor, `chat_template` included.
    """
    from transformers.processing_utils import ProcessorMixin

    family = _family(model_type)
    if "video_processor" not in family.get_attributes():
        return family(image_processor=image_processor, tokenizer=tokenizer, **settings)
    module = importlib.import_module(family.__module__)
    if getattr(module, "num2words", ...) is None:
        module.num2words = _no_video  # type: ignore[attr-defined]  # required, used only for video

    class WithoutVideo(family):  # type: ignore[misc, valid-type]
        @functools.wraps(family.__init__)  # type: ignore[misc]  # decides what is saved
        def __init__(self, image_processor: Any, tokenizer: Any, **settings: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **settings)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def apply_chat_template(self, *given: Any, **options: Any) -> Any:
            # SmolVLM's own method asks its video processor for the number of frames.
            return ProcessorMixin.apply_chat_template(self, *given, **options)

    # Saved under the packaged name, so that a full installation reads the folder with its own
    # class.
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
    """Return a source's image processor that needs only Pillow and numpy."""
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


DEFAULT = "default"

#: Families whose processors put an image before a prompt, whatever the template writes.
_PUT_IMAGES = frozenset({"blip-2", "instructblip", "paligemma"})

#: The families' image tokens in templates, if no file names them.
_IMAGE_TOKENS = {
    **dict.fromkeys(("llava", "llava_next", "idefics3", "smolvlm"), "<image>"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|image_pad|>"),
}
_CONFIGURED = ("tokenizer", "processor")  # whose configurations may name it

#: Variables that a template may use; their values do not matter.
_TOKENS = {f"{name}_token": "" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}

_NONE = (
    "has no chat template, which says how a prompt is written: add its chat_template.jinja to the "
    "folder, or take a model tuned on instructions"
)

#: A template as a file stores it: a text, named ones, or a list of {name, template}.
Stored = Any


def template_problem(folder: Path, model_type: str) -> str | None:
    """Return what is wrong with the chat templates of a model's folder; None if nothing.

    A file that cannot be read is reported when the model is loaded.
    """
    if model_type in _PUT_IMAGES:
        return None
    broken = folder / "chat_template.json"
    try:
        if broken.is_file():
            read_json(broken)
    except (OSError, ValueError) as error:
        what = first_line(error)
        return f"has a {broken.name} that cannot be read ({what}): copy it again"
    return _chosen(_in_folder(folder), {}, _image_token(folder, model_type))[1]


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
    beside = stored.get("chat_template") if isinstance(stored, dict) else None
    candidates = [processor.chat_template, getattr(tokenizer, "chat_template", None), beside]
    tokens = {**_TOKENS, **tokenizer.special_tokens_map}
    image = getattr(processor, "image_token", None)
    found, fault = _chosen(candidates, tokens, None if image is None else str(image))
    if found is None and any(candidates) and _puts_images(processor):
        return None
    if found is not None and found != processor.chat_template:
        processor.chat_template = found
    return fault


def _chosen(
    candidates: Iterable[Stored], tokens: Mapping[str, str], image: str | None = None
) -> tuple[Stored, str | None]:
    """Return the first template that shows an image, or else what is wrong with the first one."""
    faults = []
    for candidate in candidates:
        named = _named(candidate)
        if not named:
            continue
        by_name = {name: _fault(text, tokens, image) for name, text in named.items()}
        fits = [name for name, fault in by_name.items() if fault is None]
        if DEFAULT not in fits and len(fits) == 1:  # the others have other uses
            named = {**named, DEFAULT: named[fits[0]]}
        elif DEFAULT not in fits:
            faults.append(_of_names(by_name))
            continue
        return (named if len(named) > 1 else named[DEFAULT]), None
    return None, faults[0] if faults else _NONE


def _of_names(by_name: Mapping[str, str | None]) -> str:
    """Return why none of some named templates is used."""
    wrong = by_name.get(DEFAULT)
    if wrong is None and None not in by_name.values():
        wrong = next(iter(by_name.values()))
    return wrong or (
        f"has the chat templates {', '.join(by_name)}, and none is called {DEFAULT}: name the one "
        "that writes prompts so"
    )


def _named(stored: Stored) -> dict[str, str]:
    """Return templates by name; none if what is stored is not a template."""
    if isinstance(stored, str):
        return {DEFAULT: stored} if stored.strip() else {}
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


def _fault(template: str, tokens: Mapping[str, str], image: str | None) -> str | None:
    """Return what is wrong with a template; None if it shows an image."""
    words = {"type": "text", "text": "What is this?"}
    try:
        shown = _rendered(template, [{"type": "image"}, words], tokens)
    except Exception as error:  # a template is a program
        what = first_line(error)
        return (
            f"has a chat template that fails on a question with an image ({what}): put the one of "
            "the family's instruction-tuned model into chat_template.jinja"
        )
    try:
        alone = _rendered(template, [words], tokens)
    except Exception:  # it never has to
        alone = ""
    # A template that prints its content verbatim shows the words about an image, and no image.
    bare = shown == alone or "'type': 'image'" in shown or '"type": "image"' in shown
    if not bare and (image is None or image in shown):
        return None
    return (
        "has a chat template without a place for an image: put the one of the family's "
        "instruction-tuned model into chat_template.jinja"
    )


def _rendered(template: str, content: list[dict[str, str]], tokens: Mapping[str, str]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]],
        chat_template=template,
        add_generation_prompt=True,
        **{**_TOKENS, **tokens},
    )
    text: str = texts[0]
    return text


def _puts_images(processor: Any) -> bool:
    """Return whether a processor adds an image although its template does not."""
    from PIL import Image

    try:
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
            add_generation_prompt=True,
        )
        made = processor(images=[Image.new("RGB", (64, 64))], text=[text], return_tensors="pt")
        return processor.image_token_id in made["input_ids"][0].tolist()
    except Exception:  # then it does not
        return False


def _in_folder(folder: Path) -> Iterator[Stored]:
    """Yield the templates of a folder, the processor's before the tokenizer's."""
    yield _held(folder / "processor_config.json")
    named = {file.stem: _text(file) for file in folder.glob("additional_chat_templates/*.jinja")}
    yield _held(folder / "chat_template.json")
    if (folder / "chat_template.jinja").is_file():
        yield {**named, DEFAULT: _text(folder / "chat_template.jinja")}
    else:
        yield named
    yield _held(folder / "tokenizer_config.json")


def _image_token(folder: Path, model_type: str) -> str | None:
    """Return what a folder's template writes for an image; None if unknown."""
    known = _IMAGE_TOKENS.get(model_type)
    own = (_held(folder / f"{name}_config.json", "image_token") for name in _CONFIGURED)
    return known and next((token for token in own if isinstance(token, str)), known)


def _held(file: Path, key: str = "chat_template") -> Stored:
    try:
        held = read_json(file)
    except (OSError, ValueError):
        return None
    return held.get(key) if isinstance(held, dict) else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
