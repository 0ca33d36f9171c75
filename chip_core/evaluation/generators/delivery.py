"""Load an arm's weights into a server of the user's own, under a name unique to them."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chip_core.config.benchmark import GeneratorConfig
from chip_core.evaluation.generators.base import AnsweringModel, ServerLostError
from chip_core.models.adapters import TRAINED_PARTS, is_adapted, merge_adapters
from chip_core.models.parts import group_parameters, is_adapter
from chip_core.utils.errors import TrialError

#: A folder of an attempt that a server reads while it answers. Hidden files are not uploaded.
SERVED_FOLDER = ".served"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Weights loaded in a server."""

    name: str
    advice: str  # what to do if the server does not know them

    @property
    def accepted_names(self) -> tuple[str, ...]:
        """The model names that its answers may have; `transformers serve` adds the revision."""
        return self.name, f"{self.name}@main"


def arm_name(weights: str) -> str:
    """Return the name of an arm's weights, unique to them."""
    return f"chip-{hashlib.sha256(weights.encode()).hexdigest()[:24]}"


def find_weights_beyond_adapter(model: AnsweringModel) -> str | None:
    """Return which trained weights an engine may ignore if it loads the adapter; None: none.

    Engines adapt language models: vLLM may silently ignore an adapter's layers elsewhere.
    """
    if model.trained is None:
        return None
    if not is_adapted(model.model):
        return "all of its weights"
    if (model.trained / TRAINED_PARTS).exists():
        return "weights in addition to its adapter"
    parts = group_parameters(model.model.get_base_model())
    for part in ("vision_encoder", "projector"):
        if any(is_adapter(name) for name in parts[part]):
            return f"an adapter on its {part}"
    return None


def make_model_folder(model: AnsweringModel, folder: Path) -> Path:
    """Create a folder with the whole model, named after its weights; return the folder.

    A trained model that is whole is linked, one with an adapter is merged.

    Args:
        model: the weights.
        folder: the attempt's folder.
    """
    assert model.trained is not None
    model_folder = folder.absolute() / SERVED_FOLDER / arm_name(model.weights)
    model_folder.parent.mkdir(parents=True, exist_ok=True)
    _remove(model_folder)
    if not is_adapted(model.model):
        model_folder.symlink_to(model.trained.absolute(), target_is_directory=True)
        return model_folder
    with leave_device(model.model):  # a second copy may not fit beside it
        save_merged_model(model.model, model.processor, model_folder)
    return model_folder


def save_merged_model(model: Any, processor: Any, folder: Path) -> None:
    """Save a whole model; an adapter is merged into a copy of it."""
    merged = merge_adapters(copy.deepcopy(model)) if is_adapted(model) else model
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)


@contextmanager
def leave_device(model: Any) -> Iterator[torch.device]:
    """Move a model to the CPU while the context is open; yield the device that it leaves."""
    device: torch.device = next(model.parameters()).device
    model.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        yield device
    finally:
        model.to(device)


def remove_served_files(attempt: Path) -> None:
    """Remove the files that a killed attempt had left for a server to read."""
    for folder in list(attempt.rglob(SERVED_FOLDER)):
        shutil.rmtree(folder, ignore_errors=True)


class Delivery:
    """Loads weights into one server, each once, and unloads them at the end."""

    def __init__(
        self,
        settings: GeneratorConfig,
        client: Any,
        folder: Path,
        served: dict[str, str],
        label: str,
    ) -> None:
        """Set up.

        Args:
            settings: the generator's settings.
            client: the server's client.
            folder: the attempt's folder.
            served: weights that the server has already -> their name.
            label: the server's name for people.
        """
        self._settings, self._client, self._folder = settings, client, folder
        self._served, self._label = served, label
        self._delivered: dict[str, ServedModel] = {}
        self._adapters: list[str] = []
        self._folders: list[Path] = []

    def deliver(self, model: AnsweringModel) -> ServedModel:
        """Load the weights, if they are not; return their name in the server.

        Raises:
            TrialError: they cannot be loaded.
        """
        if model.weights not in self._delivered:
            self._delivered[model.weights] = self._deliver_weights(model)
        return self._delivered[model.weights]

    def _deliver_weights(self, model: AnsweringModel) -> ServedModel:
        if model.weights in self._served:
            return ServedModel(name=self._served[model.weights], advice="its log shows why")
        if model.trained is None:
            name = self._settings.model or model.base
            if self._settings.delivery == "path" and self._settings.model is None:
                name = _check_path(name) + (f"@{model.revision}" if model.revision else "")
            return ServedModel(
                name=name, advice="give the server's name for it with evaluation.generator.model"
            )
        name = arm_name(model.weights)
        if self._settings.delivery == "served":
            return ServedModel(name=name, advice=f"serve {model.trained} there under that name")
        if self._settings.delivery == "load_lora_adapter":
            self._load_adapter(
                name, model.trained, other_weights=find_weights_beyond_adapter(model)
            )
            return ServedModel(name=name, advice="it was loaded, and is no longer there")
        model_folder = make_model_folder(model, self._folder)
        self._folders.append(model_folder)
        return ServedModel(
            name=_check_path(str(model_folder)), advice="let the server read that folder"
        )

    def _load_adapter(self, name: str, trained: Path, *, other_weights: str | None) -> None:
        import openai

        if other_weights is not None:
            raise TrialError(
                f"{self._label}: only a language model's adapter can be loaded into it, but this "
                f"arm trained {other_weights}: write evaluation.generator.weights: served, or path "
                "if the server reads folders"
            )
        body = {"lora_name": name, "lora_path": str(trained.absolute())}
        try:
            self._client.post("/load_lora_adapter", body=body, cast_to=str)
        except openai.NotFoundError:
            raise TrialError(
                f"{self._label}: does not accept adapters while it runs: start it with "
                "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where nobody else can "
                "reach it"
            ) from None
        except openai.APITimeoutError:  # also an APIConnectionError, but the server is there
            raise TrialError(
                f"{self._label}: has not loaded {trained} within {self._settings.timeout:g} s: "
                "raise evaluation.generator.timeout; answers received so far are kept"
            ) from None
        except openai.APIConnectionError:
            raise ServerLostError(
                f"{self._label}: no connection: start it again; answers received so far are kept"
            ) from None
        except openai.OpenAIError as error:
            if "already" in str(error):  # the same weights: the name is theirs alone
                return
            line = (str(error).splitlines() or [""])[0]
            raise TrialError(f"{self._label}: cannot load {trained} ({line[:300]})") from None
        self._adapters.append(name)

    def close(self) -> None:
        """Unload the weights."""
        import openai

        for name in self._adapters:
            with suppress(openai.OpenAIError):  # an unreachable server needs no unloading
                self._client.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)
        for model_folder in self._folders:
            _remove(model_folder)
            with suppress(OSError):
                model_folder.parent.rmdir()


def _check_path(path: str) -> str:
    """Return a path that `transformers serve` reads as it is.

    Raises:
        TrialError: the path has an @, and the server takes what follows for a revision.
    """
    if "@" in path:
        raise TrialError(
            f"{path}: a server would read the part after @ as a revision: use a folder without one"
        )
    return path


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
