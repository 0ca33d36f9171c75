"""Which chat template writes a model's prompts: one that has a place for an image.

A processor has one of its own, in one of four files, and its tokenizer may have another. The
processor's is taken where it can show an image, else the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chip_core.utils.errors import brief
from chip_core.utils.files import read_json

DEFAULT = "default"

#: Families whose processors put an image before a prompt, whatever the template writes.
_PUT_IMAGES = frozenset({"blip-2", "instructblip", "paligemma"})

#: What templates of families write for an image where no file says otherwise.
_IMAGE_TOKENS = {
    **dict.fromkeys(("llava", "llava_next", "idefics3", "smolvlm"), "<image>"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|image_pad|>"),
}
_CONFIGURED = ("tokenizer", "processor")  # whose configurations may say so

#: What a template may name; which tokens they are is not asked.
_TOKENS = {f"{name}_token": "" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}

_NONE = (
    "has no chat template, which says how a prompt is written: add its chat_template.jinja to the "
    "folder, or take a model tuned on instructions"
)

#: A template as a file holds it: a text, named ones, or a list of {name, template}.
Stored = Any


def problem(folder: Path, model_type: str) -> str | None:
    """Return what is wrong with the chat templates of a model's folder; None if nothing.

    What cannot be read is told when the model is loaded.
    """
    if model_type in _PUT_IMAGES:
        return None
    broken = folder / "chat_template.json"
    try:
        if broken.is_file():
            read_json(broken)
    except (OSError, ValueError) as error:
        what = brief(error)
        return f"has a {broken.name} that cannot be read ({what}): copy it again"
    return _chosen(_in_folder(folder), {}, _image_token(folder, model_type))[1]


def set_template(processor: Any, read: Callable[[str], Any]) -> str | None:
    """Give a processor the template that its prompts are written by.

    Args:
        processor: its own stays where it shows an image.
        read: returns what a JSON file beside the model holds; None where there is no such file.

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
    """Return the first template that shows an image, and else what is wrong with the first."""
    faults = []
    for candidate in candidates:
        named = _named(candidate)
        if not named:
            continue
        by_name = {name: _fault(text, tokens, image) for name, text in named.items()}
        fits = [name for name, fault in by_name.items() if fault is None]
        if DEFAULT not in fits and len(fits) == 1:  # the others are for other ends
            named = {**named, DEFAULT: named[fits[0]]}
        elif DEFAULT not in fits:
            faults.append(_of_names(by_name))
            continue
        return (named if len(named) > 1 else named[DEFAULT]), None
    return None, faults[0] if faults else _NONE


def _of_names(by_name: Mapping[str, str | None]) -> str:
    """Say why none of some templates is taken."""
    wrong = by_name.get(DEFAULT)
    if wrong is None and None not in by_name.values():
        wrong = next(iter(by_name.values()))
    return wrong or (
        f"has the chat templates {', '.join(by_name)}, and none is called {DEFAULT}: name the one "
        "that writes prompts so"
    )


def _named(stored: Stored) -> dict[str, str]:
    """Return templates by name; none where what is stored is no template."""
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
        what = brief(error)
        return (
            f"has a chat template that fails on a question with an image ({what}): put the one of "
            "the family's instruction-tuned model into chat_template.jinja"
        )
    try:
        alone = _rendered(template, [words], tokens)
    except Exception:  # it is never asked to
        alone = ""
    # One that prints its content as it is shows words about an image, and none.
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
    """Return whether a processor shows an image though its template does not."""
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
    """Return what a folder's template writes for an image; None where it is not known."""
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
