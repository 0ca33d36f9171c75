"""Model code that is not in transformers: this package's own families, and code in a model's
folder.

transformers' Auto classes know this package's families after `register`; all code here that loads a
model or a processor of one calls that first.

Code that comes with a model is run only with `model.trust_remote_code`. It runs with all rights of
the user who starts a trial. So it is part of the model's identity, a hub name is read at one commit
only, and code from a third place, which that commit does not pin, is refused.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from chip_core.config.trial import ModelConfig
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_json

#: `model_type` of a config.json -> the package of the family, whose `register` registers it.
FAMILIES = {"muffin": "chip_core.models.muffin"}

#: `model_type` of a checkpoint as its authors released it -> the command that converts it.
CONVERTERS = {"beit3_llava": "python -m chip_core.models.muffin.convert SRC DST"}

#: Those whose processors score a training's tokens by `training.label_rule`.
LABEL_RULE_FAMILIES = frozenset({"muffin"})

#: Files that may name a model's own classes, under `auto_map`.
_AUTO_MAP_FILES = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
_COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")
_AUTO_CLASS = "AutoModelForImageTextToText"


def register() -> None:
    """Register this package's families with transformers' Auto classes."""
    for package in FAMILIES.values():
        importlib.import_module(package).register()


def find_revision_problem(model: ModelConfig) -> str | None:
    """Return what is wrong with running a hub name's code; None if nothing."""
    if not model.trust_remote_code or _COMMIT_PATTERN.fullmatch(model.revision or ""):
        return None
    return (
        f"{model.path}: trust_remote_code runs the code of a hub name only at a fixed commit: "
        "write its 40 digits as model.revision"
    )


def has_own_model(config: Any) -> bool:
    """Return whether a config.json names an image-text-to-text model of its own."""
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    return isinstance(auto_map, dict) and isinstance(auto_map.get(_AUTO_CLASS), str)


def check_own_code(source: str, **options: Any) -> None:
    """Check that a model does not refer to code from another place.

    Args:
        source: a folder or a hub name.
        options: `revision`, where there is one.

    Raises:
        TrialError: it refers to code from another place.
    """
    from transformers.utils import cached_file

    for name in _AUTO_MAP_FILES:
        try:
            path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
            content = None if path is None else read_json(Path(path))
        except (OSError, ValueError):
            continue  # reported when it is loaded
        for class_name in _list_auto_map_classes(content):
            if "--" in class_name:
                raise TrialError(
                    f"{source}: {name} refers to code from another place "
                    f"({class_name.partition('--')[0]}), which no revision pins: copy that code "
                    "to the model's own folder"
                )


def _list_auto_map_classes(content: Any) -> list[str]:
    """Return the class names of a file's `auto_map`."""
    auto_map = content.get("auto_map") if isinstance(content, dict) else None
    values = auto_map.values() if isinstance(auto_map, dict) else ()
    entries = [
        entry for value in values for entry in (value if isinstance(value, list) else [value])
    ]
    return [entry for entry in entries if isinstance(entry, str)]
