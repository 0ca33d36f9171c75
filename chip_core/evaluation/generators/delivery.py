"""How an arm's weights reach a server of the user's own, under a name that is theirs alone."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.config.generator import GeneratorConfig
from chip_core.evaluation.generators.base import AnsweringModel, ServerLostError
from chip_core.models.adapters import TRAINED_PARTS, is_adapted, merge_adapters
from chip_core.models.parts import is_adapter, named_parts
from chip_core.utils.errors import TrialError

#: Folder of an attempt: what a server reads while it answers. Hidden files go to no storage.
SERVED = ".served"


@dataclass(frozen=True, kw_only=True)
class Served:
    """Weights as a server knows them."""

    name: str
    advice: str  # what to do where it does not know them

    @property
    def answers_as(self) -> tuple[str, ...]:
        """What an answer of theirs names as its maker; `transformers serve` adds the revision."""
        return self.name, f"{self.name}@main"


def arm_name(weights: str) -> str:
    """Return the name of an arm's weights: no other weights have it."""
    return f"chip-{hashlib.sha256(weights.encode()).hexdigest()[:24]}"


def beyond_adapter(model: AnsweringModel) -> str | None:
    """Return what of a trained model an engine may leave out that loads its adapter; None: nothing.

    Engines adapt language models: vLLM may pass over an adapter's layers elsewhere without a word.
    """
    if model.trained is None:
        return None
    if not is_adapted(model.model):
        return "all of its weights"
    if (model.trained / TRAINED_PARTS).exists():
        return "weights beside its adapter"
    parts = named_parts(model.model.get_base_model())
    for part in ("vision_encoder", "projector"):
        if any(is_adapter(name) for name in parts[part]):
            return f"an adapter on its {part}"
    return None


def whole_folder(model: AnsweringModel, folder: Path) -> Path:
    """Leave a whole model in the folder of its name; return that.

    A trained model that is whole is linked to, one that is adapted is merged.

    Args:
        model: whose weights.
        folder: the attempt's.
    """
    assert model.trained is not None
    place = folder.absolute() / SERVED / arm_name(model.weights)
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove(place)
    if not is_adapted(model.model):
        place.symlink_to(model.trained.absolute(), target_is_directory=True)
        return place
    device = next(model.model.parameters()).device
    model.model.to("cpu")  # a second copy may not fit beside it
    try:
        plain = merge_adapters(copy.deepcopy(model.model))
    finally:
        model.model.to(device)
    plain.save_pretrained(place)
    model.processor.save_pretrained(place)
    return place


def drop_served(attempt: Path) -> None:
    """Remove what an attempt that was killed had left for a server to read."""
    for left in list(attempt.rglob(SERVED)):
        shutil.rmtree(left, ignore_errors=True)


class Delivery:
    """Brings weights to one server, each once, and takes them back."""

    def __init__(
        self,
        settings: GeneratorConfig,
        client: Any,
        folder: Path,
        served: dict[str, str],
        told: Callable[[str], str],
    ) -> None:
        """Make ready.

        Args:
            settings: of the generator.
            client: of the server.
            folder: the attempt's.
            served: weights that are there -> their name.
            told: puts the server's name before what is to be said of it.
        """
        self._settings, self._client, self._folder = settings, client, folder
        self._served, self._told = served, told
        self._brought: dict[str, Served] = {}
        self._adapters: list[str] = []
        self._folders: list[Path] = []

    def bring(self, model: AnsweringModel) -> Served:
        """Return what the server knows the weights by, once it can have them.

        Raises:
            TrialError: it cannot.
        """
        if model.weights not in self._brought:
            self._brought[model.weights] = self._bring(model)
        return self._brought[model.weights]

    def _bring(self, model: AnsweringModel) -> Served:
        if model.weights in self._served:
            return Served(name=self._served[model.weights], advice="its log says why")
        if model.trained is None:
            name = self._settings.model or model.base
            if self._settings.delivery == "path" and self._settings.model is None:
                name = _plain(name) + (f"@{model.revision}" if model.revision else "")
            return Served(
                name=name, advice="name it as the server does by evaluation.generator.model"
            )
        name = arm_name(model.weights)
        if self._settings.delivery == "served":
            return Served(name=name, advice=f"serve {model.trained} there under that name")
        if self._settings.delivery == "load_lora_adapter":
            self._load(name, model.trained, beyond=beyond_adapter(model))
            return Served(name=name, advice="it was loaded, and is no longer there")
        place = whole_folder(model, self._folder)
        self._folders.append(place)
        return Served(name=_plain(str(place)), advice="let the server read that folder")

    def _load(self, name: str, trained: Path, *, beyond: str | None) -> None:
        import openai

        if beyond is not None:
            raise TrialError(
                self._told(
                    f"a language model's adapter can be loaded into it, and this arm trained "
                    f"{beyond}: write evaluation.generator.weights: served, or path where the "
                    "server reads folders"
                )
            )
        body = {"lora_name": name, "lora_path": str(trained.absolute())}
        try:
            self._client.post("/load_lora_adapter", body=body, cast_to=str)
        except openai.NotFoundError:
            raise TrialError(
                self._told(
                    "takes no adapters while it runs: start it with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where nobody else reaches it"
                )
            ) from None
        except openai.APITimeoutError:  # a connection's error too, of a server that is there
            raise TrialError(
                self._told(
                    f"has not loaded {trained} within {self._settings.timeout:g} s: raise "
                    "evaluation.generator.timeout; answers that came are kept"
                )
            ) from None
        except openai.APIConnectionError:
            raise ServerLostError(
                self._told("no connection: start it again; answers that came are kept")
            ) from None
        except openai.OpenAIError as error:
            if "already" in str(error):  # these weights: nothing else has their name
                return
            line = (str(error).splitlines() or [""])[0]
            raise TrialError(self._told(f"cannot load {trained} ({line[:300]})")) from None
        self._adapters.append(name)

    def close(self) -> None:
        """Take back what was brought."""
        import openai

        for name in self._adapters:
            with suppress(openai.OpenAIError):  # a server that is away holds nothing
                self._client.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)
        for place in self._folders:
            _remove(place)
            with suppress(OSError):
                place.parent.rmdir()


def _plain(path: str) -> str:
    """Return a path that `transformers serve` reads whole.

    Raises:
        TrialError: it takes what follows an @ for a revision.
    """
    if "@" in path:
        raise TrialError(
            f"{path}: a server takes what follows the @ for a revision: use a folder without one"
        )
    return path


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place, ignore_errors=True)
