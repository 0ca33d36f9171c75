"""From a configuration to a model and its processor."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from chip_core.config import ModelConfig
from chip_core.shapes import MODEL_FOLDER

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


def local_folder(path: str) -> Path | None:
    """Return the folder that a model path means; None for a hub name."""
    if path == "shapes":
        return MODEL_FOLDER
    folder = Path(path).expanduser()
    if not folder.exists() and _HUB_NAME.match(path) and not path.startswith("."):
        return None
    return folder


def problem(model: ModelConfig) -> str | None:
    """Return what is wrong with a model's folder, before anything is started; None if nothing.

    A hub name is not looked up here.
    """
    folder = local_folder(model.path)
    if folder is None:
        return None
    if not folder.is_dir():
        return f"no folder {folder}: name a folder with a Hugging Face model, or a hub name"
    try:
        if "model_type" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
            return f"{folder}/config.json names no model_type: not a Hugging Face model"
    except (OSError, ValueError) as error:
        return f"{folder}/config.json cannot be read ({_brief(error)}): not a Hugging Face model"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return f"no *.safetensors in {folder}: convert the weights with save_pretrained"
    missing = _missing_shards(folder)
    if missing:
        return f"{folder} lacks {', '.join(missing)}: copy the folder again"
    from safetensors import SafetensorError, safe_open

    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file} cannot be read ({_brief(error)}): copy the weights again"
    return None


def identity(model: ModelConfig) -> dict[str, Any]:
    """Return what a fingerprint holds of a model: its content, not where it lies."""
    folder = local_folder(model.path)
    if folder is None:
        return {"hub": model.path, "revision": model.revision or "main"}
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"}:
            digest.update(file.name.encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"content": digest.hexdigest()}


def load(model: ModelConfig) -> tuple[Any, Any]:
    """Return (model, processor) in fp32, on the CPU, in evaluation mode.

    Weights come from safetensors alone, and no code of the model's folder is run.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for each load of each trial says nothing to anyone
    folder = local_folder(model.path)
    source = model.path if folder is None else str(folder)
    revision = {} if folder is not None or model.revision is None else {"revision": model.revision}
    loaded = AutoModelForImageTextToText.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **revision
    )
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=False, **revision)
    return loaded.eval(), processor


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return [f"a readable {index.name}"]
    return sorted(shard for shard in shards if not (folder / shard).exists())


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
