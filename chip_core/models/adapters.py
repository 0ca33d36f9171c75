"""Low-rank adapters, and how a trained model is written and read again.

Without adapters a trained model is a Hugging Face folder. With them it is a PEFT folder; what was
trained beside them (projector, vision encoder) lies in it as `trained_parts.safetensors`, named as
in the base model's state dict.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config import LoraConfig, TrialConfig
from chip_core.errors import DiskFullError, TrialError
from chip_core.files import room_for, sync_files
from chip_core.models import own
from chip_core.models.parts import is_adapter, trained_parts
from chip_core.models.shards import is_sharded, put_weights, whole_weights
from chip_core.seeding import derived_seed

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_PARTS = "trained_parts.safetensors"

#: How names of the base model begin in a model with adapters.
_WITHIN_PEFT = "base_model.model."


def attach(model: Any, config: TrialConfig) -> Any:
    """Return the model that is trained: with adapters where the configuration wants them.

    The adapters' first values are a function of the seed; they change no output.

    Raises:
        TrialError: a target of `lora.targets` is no linear layer of the decoder.
    """
    if config.language_model != "lora":
        return model
    import peft

    settings = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=decoder_linears(model, config.lora),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("lora", config.seed))
        return peft.get_peft_model(model, settings).eval()


def decoder_linears(model: Any, config: LoraConfig) -> list[str]:
    """Return the whole names of the decoder's linear layers that get an adapter.

    Whole names and not their last parts: those would match layers of the vision encoder too.
    """
    within = {id(module) for module in model.get_decoder().modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in within
    ]
    if config.targets == "all":
        return names
    known = sorted({name.rsplit(".", 1)[-1] for name in names})
    unknown = sorted(set(config.targets) - set(known))
    if unknown:
        raise TrialError(
            f"lora.targets: the decoder has no linear layer {', '.join(unknown)}: "
            f"choose from {', '.join(known)}"
        )
    return [name for name in names if name.rsplit(".", 1)[-1] in config.targets]


def is_adapted(model: Any) -> bool:
    """Return whether a model carries adapters."""
    return hasattr(model, "peft_config")


class Original:
    """A model as it was before training, computed by its own modules.

    Its adapter is switched off, and what is trained beside it stands aside for a copy taken here;
    all else is shared. So it holds a second copy of what is trained in whole, and of nothing more.
    """

    def __init__(self, model: Any, config: TrialConfig) -> None:
        self._model = model
        self._copies: dict[nn.Parameter, Tensor] = {
            parameter: parameter.detach().clone()
            for parameters in trained_parts(model, config).values()
            for name, parameter in parameters.items()
            if not is_adapter(name)
        }

    @torch.no_grad()
    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a module, the model or one that holds it, as if it had never been trained."""
        copies = {
            name: self._copies[parameter]
            for name, parameter in module.named_parameters()
            if parameter in self._copies
        }
        with without_adapter(self._model):
            return torch.func.functional_call(module, copies, args, kwargs)

    def of(self, parameter: nn.Parameter) -> Tensor | None:
        """Return a parameter as it was; None where it is not trained and so still is."""
        return self._copies.get(parameter)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Switch a model's adapter off, where it has one."""
    if not is_adapted(model):
        yield
        return
    # Switching an adapter off and on marks all of it as trained: put back what was.
    marks = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, trained in marks:
            parameter.requires_grad_(trained)


def save_model(
    model: Any, processor: Any, folder: Path, config: TrialConfig, *, write: bool = True
) -> None:
    """Write a trained model's folder; its name appears only when it is whole.

    Args:
        model: the model; all workers come here with theirs.
        processor: its processor.
        folder: where.
        config: the trial.
        write: whether this worker writes.

    Raises:
        DiskFullError: it does not fit.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if write:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        with room_for("the trained model", folder.parent):
            write_weights(model, partial, config, write=write)
            if write:
                processor.save_pretrained(partial)
                sync_files(partial)
                partial.replace(folder)
    except DiskFullError:
        if write:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def write_weights(model: Any, folder: Path, config: TrialConfig, *, write: bool = True) -> None:
    """Write a trained model's weights and configuration as they are read by `read_weights`.

    All workers of a training come here with their models; one of them is to `write`.
    """
    from safetensors.torch import save_file

    weights = whole_weights(model, keep=write) if is_sharded(model) else None
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not is_adapted(model):
        model.save_pretrained(folder, state_dict=weights)
        return
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    beside = {
        name: (parameter if weights is None else weights[_WITHIN_PEFT + name])
        .detach()
        .cpu()
        .contiguous()
        for parameters in trained_parts(model.get_base_model(), config).values()
        for name, parameter in parameters.items()
        if not is_adapter(name)
    }
    if beside:
        save_file(beside, folder / TRAINED_PARTS, metadata={"format": "pt"})


def read_weights(model: Any, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Put the weights of a trained model's folder into a model of the same making.

    Args:
        model: takes them.
        folder: a Hugging Face or a PEFT one.
        trust_remote_code: `model.trust_remote_code`.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    own.register()
    if not is_adapted(model):
        stored = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        put_weights(model, stored.state_dict())
        return
    read_beside(model.get_base_model(), folder)
    adapter = load_file(folder / ADAPTER_WEIGHTS)
    # A file names no adapter: the one that `attach` makes is peft's default.
    put_weights(
        model, {name.replace(".weight", ".default.weight"): adapter[name] for name in adapter}
    )


def with_adapter(base: Any, folder: Path) -> Any:
    """Return a base model with the adapter, and what was trained beside it, of a folder."""
    import peft

    if not (folder / ADAPTER_WEIGHTS).is_file():  # peft would look for a pickle
        raise TrialError(f"no {ADAPTER_WEIGHTS} in {folder}: save the adapter as safetensors")
    read_beside(base, folder)
    return peft.PeftModel.from_pretrained(base, folder).eval()


def merged(model: Any) -> Any:
    """Return a model without adapters that answers as this one does; this one is used up."""
    return model.merge_and_unload() if is_adapted(model) else model


def read_beside(base: Any, folder: Path) -> None:
    """Put the weights that were trained beside an adapter into its base model."""
    from safetensors.torch import load_file

    if not (folder / TRAINED_PARTS).exists():
        return
    unknown = put_weights(base, load_file(folder / TRAINED_PARTS))
    if unknown:
        raise TrialError(
            f"{folder / TRAINED_PARTS} does not fit the base model ({unknown[0]} is not in it): "
            "name the model it was trained from"
        )
