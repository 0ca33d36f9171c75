"""Where a chat template lies, and which is taken: one that shows an image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.trial import ModelConfig
from chip_core.models import loading
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.errors import TrialError
from orchestrator.cli import main

GOOD = (MODEL_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
#: Of a language model: a message is a text.
TEXT_ALONE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
PRINTS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{% endfor %}"
NO_PLACE = (
    "{% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
QUESTION = [{"type": "image"}, {"type": "text", "text": "What is it?"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model without its chat template."""
    copied = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, copied)
    (copied / "chat_template.jinja").unlink()
    return copied


def write_json_template(folder: Path, name: str, template: Any) -> None:
    """Add a template to a file of JSON."""
    file = folder / name
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**held, "chat_template": template}))


def write_jinja_template(folder: Path, template: str, name: str = "chat_template") -> None:
    (folder / f"{name}.jinja").parent.mkdir(exist_ok=True)
    (folder / f"{name}.jinja").write_text(template)


def in_tokenizer(folder: Path) -> None:
    write_json_template(folder, "tokenizer_config.json", GOOD)


def named_in_tokenizer(folder: Path) -> None:
    named = [{"name": "tool_use", "template": NO_PLACE}, {"name": "default", "template": GOOD}]
    write_json_template(folder, "tokenizer_config.json", named)


def named_without_a_default(folder: Path) -> None:
    named = [{"name": "rag", "template": NO_PLACE}, {"name": "chat", "template": GOOD}]
    write_json_template(folder, "tokenizer_config.json", named)


def one_of_another_name(folder: Path) -> None:
    write_json_template(folder, "tokenizer_config.json", [{"name": "chat", "template": GOOD}])


def in_processor_config(folder: Path) -> None:
    write_json_template(folder, "processor_config.json", GOOD)


def in_json(folder: Path) -> None:
    write_json_template(folder, "chat_template.json", GOOD)


def named_in_json(folder: Path) -> None:
    write_json_template(folder, "chat_template.json", [{"name": "default", "template": GOOD}])


def beside_one_without_a_place(folder: Path) -> None:
    write_jinja_template(folder, NO_PLACE)
    write_json_template(folder, "tokenizer_config.json", GOOD)


def beside_one_of_texts(folder: Path) -> None:
    write_json_template(folder, "chat_template.json", TEXT_ALONE)
    write_json_template(folder, "tokenizer_config.json", GOOD)


def among_others(folder: Path) -> None:
    write_jinja_template(folder, GOOD)
    write_jinja_template(folder, NO_PLACE, "additional_chat_templates/tool_use")


def beside_a_default_without_a_place(folder: Path) -> None:
    named = [{"name": "default", "template": NO_PLACE}, {"name": "vision", "template": GOOD}]
    write_json_template(folder, "tokenizer_config.json", named)


def beside_an_empty_one(folder: Path) -> None:
    write_jinja_template(folder, "")
    write_json_template(folder, "tokenizer_config.json", GOOD)


def under_another_name(folder: Path) -> None:
    write_jinja_template(folder, GOOD, "additional_chat_templates/chat")


def before_a_worse_one(folder: Path) -> None:
    write_jinja_template(folder, GOOD)
    write_json_template(folder, "tokenizer_config.json", PRINTS)


@pytest.mark.parametrize(
    "lay",
    [
        in_tokenizer,
        named_in_tokenizer,
        named_without_a_default,
        one_of_another_name,
        in_processor_config,
        in_json,
        named_in_json,
        beside_one_without_a_place,
        beside_one_of_texts,
        among_others,
        under_another_name,
        beside_a_default_without_a_place,
        beside_an_empty_one,
        before_a_worse_one,
    ],
)
def test_a_template_is_found_wherever_it_lies(
    folder: Path, lay: Callable[[Path], None], tmp_path: Path
) -> None:
    lay(folder)
    model = ModelConfig(path=str(folder))
    assert loading.find_model_problem(model) is None
    made = loading.load_processor_only(model)
    first = loading.load_processor_only(ModelConfig(path="shapes"))
    asked = [{"role": "user", "content": QUESTION}]
    prompts = [
        each.apply_chat_template(asked, add_generation_prompt=True) for each in (made, first)
    ]
    assert prompts[0] == prompts[1]
    # What is trained is saved with it, and is read again as any model is.
    made.save_pretrained(tmp_path / "saved")
    shutil.copy(folder / "config.json", tmp_path / "saved")
    shutil.copy(folder / "model.safetensors", tmp_path / "saved")
    again = loading.load_processor_only(ModelConfig(path=str(tmp_path / "saved")))
    assert again.apply_chat_template(asked, add_generation_prompt=True) == prompts[1]


def nowhere(folder: Path) -> str:
    return "has no chat template to write prompts with: add its chat_template.jinja"


def no_place(folder: Path) -> str:
    write_jinja_template(folder, NO_PLACE)
    return "has a chat template without a place for an image: put that of the family's"


def no_place_twice(folder: Path) -> str:
    write_jinja_template(folder, NO_PLACE)
    write_json_template(folder, "tokenizer_config.json", TEXT_ALONE)
    return "has a chat template without a place for an image"


def of_texts(folder: Path) -> str:
    write_jinja_template(folder, TEXT_ALONE)
    return r"has a chat template that fails on a question with an image \(.*\): put that"


def printing(folder: Path) -> str:
    write_jinja_template(folder, PRINTS)
    return "has a chat template without a place for an image"


def another_mark(folder: Path) -> str:
    write_jinja_template(folder, GOOD.replace("<image>", "<img>"))
    return "has a chat template without a place for an image"


def no_template_at_all(folder: Path) -> str:
    write_jinja_template(folder, "{% for m in messages %}")
    return "has a chat template that fails on a question with an image"


def two_names(folder: Path) -> str:
    named = [{"name": name, "template": GOOD} for name in ("chat", "rag")]
    write_json_template(folder, "tokenizer_config.json", named)
    return "has the chat templates chat, rag, but none is called default: rename the one"


@pytest.mark.parametrize(
    "lay",
    [
        nowhere,
        no_place,
        no_place_twice,
        of_texts,
        printing,
        another_mark,
        no_template_at_all,
        two_names,
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    folder: Path, lay: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = lay(folder)
    model = ModelConfig(path=str(folder))
    with pytest.raises(TrialError, match=expected) as raised:
        loading.load_processor_only(model)
    assert loading.find_model_problem(model) == str(raised.value)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), "--benchmarks", "shapes", "--out", str(folder / "out")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"chip-ablate: {folder}")
    assert not (folder / "out").exists()
