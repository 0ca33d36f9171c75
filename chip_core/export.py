"""Export a trained model's folder for serving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from chip_core.config.trial import TrialConfig
from chip_core.models import loading
from chip_core.models.adapters import TRAINED_PARTS, merge_adapters
from chip_core.results import CONFIG, MODEL
from chip_core.trained import check_model
from chip_core.utils.errors import TrialError, UserError


def export_model(trial: Path, into: Path, *, merge: bool = False) -> list[str]:
    """Write a trial's trained model to a new folder; return notes for the user.

    Args:
        trial: the trial's folder.
        into: the folder to create; it appears only when it is complete.
        merge: merge the adapter into its base model's weights: one plain Hugging Face folder.

    Raises:
        UserError: there is no trained model, `into` is in use or cannot be written, or the base
            model is not available.
    """
    model = trial / MODEL
    if not model.is_dir():
        raise UserError(
            f"{trial} holds no trained model: its weights were removed, or it never had one"
        )
    try:
        check_model(model)
        return _write_export(model, trial, into.resolve(), merge)
    except TrialError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{into}: cannot be exported to ({error.strerror or error})") from None


def _write_export(model: Path, trial: Path, into: Path, merge: bool) -> list[str]:
    """Write a model's folder to a resolved path."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UserError(f"{into} is not empty: name a new folder")
    if into.is_relative_to(model.resolve()):
        raise UserError(f"{into} is in the trained model's own folder: name another")
    adapter = (model / loading.ADAPTER_CONFIG).exists()
    partial = into.with_name(f".{into.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    settings = []
    if adapter and merge:
        try:
            config = TrialConfig.model_validate_json((trial / CONFIG).read_bytes())
        except ValueError:
            raise UserError(
                f"{trial / CONFIG} has changed since it was written: export without --merge, or "
                "remove the trial with `chip-ablate rm TRIAL` and run its study again"
            ) from None
        try:
            # Merged in fp32, because bf16 weights would keep little of what an adapter adds, and
            # into the weights before 4-bit quantization, as QLoRA's authors do.
            base = config.model.model_copy(update={"dtype": "fp32", "quantize": "none"})
            loaded, processor = loading.load(base, trained=model)
        except TrialError as error:
            raise UserError(f"the base model is needed to merge: {error}") from None
        merge_adapters(loaded).save_pretrained(partial)
        processor.save_pretrained(partial)
        settings.append("the adapter is merged: a plain Hugging Face folder")
    else:
        shutil.copytree(model, partial)
        if merge:
            settings.append("nothing to merge: the model was trained without an adapter")
        if adapter:
            base = json.loads((model / loading.ADAPTER_CONFIG).read_text(encoding="utf-8"))
            settings.append(f"a PEFT adapter of {base['base_model_name_or_path']}")
        if (model / TRAINED_PARTS).exists():
            settings.append(
                f"parts trained in addition to it are in {TRAINED_PARTS}: --merge makes one model"
            )
    if into.exists():
        into.rmdir()
    partial.replace(into)
    return settings
