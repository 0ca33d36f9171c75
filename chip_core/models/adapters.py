"""Attach low-rank adapters, and write and read trained models.

Without adapters a trained model is a Hugging Face folder. With them it is a PEFT folder; parts that
were trained in full are in it as `trained_parts.safetensors`, with the names of the base model's
state dict.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config.trial import LoraConfig, TrialConfig
from chip_core.models import ADAPTER_CONFIG
from chip_core.models.fit import (
    PEFT_PREFIX,
    Layout,
    WeightMatch,
    find_layout,
    format_names,
    list_layouts,
)
from chip_core.models.parts import (
    find_projector_linears,
    find_tower_linears,
    group_parameters,
    is_adapter,
    select_trained_parameters,
)
from chip_core.models.shards import gather_weights, is_sharded, load_weights
from chip_core.utils.errors import DiskFullError, TrialError, UnfitError, first_line
from chip_core.utils.files import convert_disk_full, sync_files
from chip_core.utils.seeding import derive_seed

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_PARTS = "trained_parts.safetensors"

OTHER_BASE_ADVICE = "name the model that it was trained from (evaluate: --base)"
INCOMPLETE_ADVICE = "it is incomplete: copy or save it again"

#: The weights of an adapter that are zero before its training.
_LORA_B_PATTERN = re.compile(r"\.lora_(?:embedding_)?B\b")

#: PEFT's settings per layer name.
_PATTERN_SETTINGS = ("rank_pattern", "alpha_pattern")

_log = logging.getLogger(__name__)


def attach_adapters(model: Any, config: TrialConfig) -> Any:
    """Return the model to train, with adapters if the configuration has them.

    The adapters' initial values are a function of the seed; they change no output.

    Raises:
        TrialError: a target of `lora.targets` is not a linear layer of the decoder, or a part that
            should get adapters has no linear layer.
    """
    if not config.has_adapters:
        return model
    import peft

    settings = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=_find_adapted_layers(model, config),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("lora", config.seed))
        return _wrap_with_adapter(model, settings).eval()


def _find_adapted_layers(model: Any, config: TrialConfig) -> list[str]:
    """Return the full names of the linear layers that get an adapter."""
    names = find_decoder_linears(model, config.lora) if config.language_model == "lora" else []
    if config.vision_encoder == "lora":
        names += find_tower_linears(model)
    if config.projector == "lora":
        names += find_projector_linears(model)
    return names


def find_decoder_linears(model: Any, config: LoraConfig) -> list[str]:
    """Return the full names of the decoder's linear layers that get an adapter.

    Full names, because their last components would match layers of the vision encoder too.
    """
    decoder_ids = {id(module) for module in model.get_decoder().modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in decoder_ids
    ]
    if config.targets == "all":
        return names
    choices = sorted({name.rsplit(".", 1)[-1] for name in names})
    unknown = sorted(set(config.targets) - set(choices))
    if unknown:
        raise TrialError(
            f"lora.targets: the decoder has no linear layer {', '.join(unknown)}: "
            f"choose from {', '.join(choices)}"
        )
    return [name for name in names if name.rsplit(".", 1)[-1] in config.targets]


def is_adapted(model: Any) -> bool:
    """Return whether a model has adapters."""
    return hasattr(model, "peft_config")


class OriginalModel:
    """A model as it was before training, computed with its own modules.

    Its adapter is disabled, and the parts trained in full are replaced by copies made here;
    everything else is shared, so only the parts trained in full are held twice. If each round
    continues the adapter of the round before, the adapter is replaced by a copy of itself instead.
    """

    def __init__(self, model: Any, config: TrialConfig) -> None:
        self._model = model
        self._keeps_adapter = config.pairs.rounds > 1
        self._copies: dict[nn.Parameter, Tensor] = {
            parameter: parameter.detach().clone()
            for parameters in select_trained_parameters(model, config).values()
            for name, parameter in parameters.items()
            if self._keeps_adapter or not is_adapter(name)
        }

    @torch.no_grad()
    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a module, the model or one that holds it, with the weights from before training."""
        copies = {
            name: self._copies[parameter]
            for name, parameter in module.named_parameters()
            if parameter in self._copies
        }
        with nullcontext() if self._keeps_adapter else disable_adapter(self._model):
            return torch.func.functional_call(module, copies, args, kwargs)

    def original_value(self, parameter: nn.Parameter) -> Tensor | None:
        """Return a parameter as it was before training; None if it is not trained."""
        return self._copies.get(parameter)


@contextmanager
def disable_adapter(model: Any) -> Iterator[None]:
    """Disable a model's adapter, if it has one."""
    if not is_adapted(model):
        yield
        return
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore_flags() -> None:
        for parameter, trained in flags:
            parameter.requires_grad_(trained)

    try:
        with model.disable_adapter():
            # PEFT clears the adapter's `requires_grad`, and FSDP records what it finds when it
            # first gathers weights.
            restore_flags()
            yield
    finally:
        restore_flags()  # PEFT also marks the whole adapter as trained


def save_model(
    model: Any, processor: Any, folder: Path, config: TrialConfig, *, write: bool = True
) -> None:
    """Write a trained model's folder; it gets its name only when it is complete.

    An existing folder is replaced: it was not recorded as complete.

    Args:
        model: the model; all workers call this with theirs.
        processor: its processor.
        folder: where to write.
        config: the trial.
        write: whether this worker writes.

    Raises:
        DiskFullError: there is not enough space.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if write:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        with convert_disk_full("the trained model", folder.parent):
            write_weights(model, partial, config, write=write)
            if write:
                processor.save_pretrained(partial)
                sync_files(partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.replace(folder)
    except DiskFullError:
        if write:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def write_weights(model: Any, folder: Path, config: TrialConfig, *, write: bool = True) -> None:
    """Write a trained model's weights and configuration in the form that `read_weights` reads.

    All workers of a training call this with their models; only one of them has `write`.
    """
    from safetensors.torch import save_file

    weights = None
    if is_sharded(model):
        # Of an adapted model, only the weights to write are gathered; the rest are the base
        # model's.
        names = _find_saved_names(model, config) if is_adapted(model) else None
        weights = gather_weights(model, keep=write, names=names)
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not is_adapted(model):
        model.save_pretrained(folder, state_dict=weights)
        return
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    full_parts = {
        name: (parameter if weights is None else weights[PEFT_PREFIX + name])
        .detach()
        .cpu()
        .contiguous()
        for parameters in select_trained_parameters(model.get_base_model(), config).values()
        for name, parameter in parameters.items()
        if not is_adapter(name)
    }
    if full_parts:
        save_file(full_parts, folder / TRAINED_PARTS, metadata={"format": "pt"})


def _find_saved_names(model: Any, config: TrialConfig) -> set[str]:
    """Return the names of the weights of an adapted model's state dict that its folder holds."""
    parts = select_trained_parameters(model.get_base_model(), config).values()
    full_names = {PEFT_PREFIX + name for part in parts for name in part}
    return full_names | {name for name in model.state_dict() if is_adapter(name)}


def read_adapter(model: Any, folder: Path) -> None:
    """Load the weights of a PEFT folder, trained parts included, into an adapted model.

    Args:
        model: the model to load into; built the same way.
        folder: the PEFT folder.

    Raises:
        UnfitError: they do not fit; the model is unchanged.
        TrialError: they cannot be read.
    """
    base, file = model.get_base_model(), folder / ADAPTER_WEIGHTS
    full_parts = _match_full_parts(base, folder)
    weights = _read_safetensors(file)
    adapter = _match_adapter(model, file, weights, find_layout(base, weights))
    load_weights(base, full_parts)
    # A file names no adapter; the one that `attach_adapters` makes is PEFT's default.
    load_weights(
        model, {name.replace(".weight", ".default.weight"): adapter[name] for name in adapter}
    )


def load_adapter(base: Any, folder: Path) -> Any:
    """Return a base model with a folder's adapter and trained parts.

    Raises:
        UnfitError: they are another model's, or incomplete.
        TrialError: they cannot be read.
    """
    import peft

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():  # peft would look for a pickle file
        raise TrialError(f"no {ADAPTER_WEIGHTS} in {folder}: save the adapter as safetensors")
    settings = _read_peft_config(folder)
    _check_base_class(base, settings, folder)
    weights = _read_safetensors(file)
    layout = find_layout(base, weights)
    settings.base_model_name_or_path = base.name_or_path  # peft warns if it differs
    load_weights(base, _match_full_parts(base, folder))
    try:
        _rename_layers(settings, base, layout, weights)
        model = _wrap_with_adapter(base, settings)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, re.error) as error:
        reason = first_line(error)
        unmatched = [name for name in weights if not layout.is_leaf_module(name)]
        if not unmatched:
            raise TrialError(
                f"{folder / ADAPTER_CONFIG} cannot be used ({reason}): "
                "save the adapter again with PEFT"
            ) from None
        raise UnfitError(
            f"{file} does not fit {base.name_or_path}: {len(unmatched)} of its {len(weights)} "
            f"weights do not exist in it ({format_names(unmatched)}; PEFT: {reason}): "
            f"{OTHER_BASE_ADVICE}"
        ) from None
    adapter = _match_adapter(model, file, weights, layout)
    leftover = peft.set_peft_model_state_dict(model, adapter).unexpected_keys
    # Prompt learning loads its weights differently.
    if leftover and not settings.is_prompt_learning:
        raise UnfitError(
            f"{file}: PEFT leaves out {len(leftover)} of its weights ({leftover[0]}, …)"
        )
    lora_b_weights = [weight for name, weight in adapter.items() if _LORA_B_PATTERN.search(name)]
    if lora_b_weights and not any(weight.any() for weight in lora_b_weights):
        _log.warning("%s: every lora_B is zero, as before training: it changes nothing", file)
    return model.eval()


def merge_adapters(model: Any) -> Any:
    """Return a model without adapters that gives the same outputs; the given one is used up."""
    return model.merge_and_unload() if is_adapted(model) else model


def _wrap_with_adapter(model: Any, peft_config: Any) -> Any:
    """Return a model with the layers that an adapter's settings define."""
    import peft

    with warnings.catch_warnings():
        # PEFT uses what transformers is about to rename; the user cannot change that.
        warnings.simplefilter("ignore", FutureWarning)
        # An adapter has the dtype of its base model.
        return peft.get_peft_model(model, peft_config, autocast_adapter_dtype=False)


def _read_peft_config(folder: Path) -> Any:
    """Return the settings of a PEFT folder, for inference."""
    import peft

    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        if settings.peft_type is None:
            raise ValueError("it names no peft_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrialError(
            f"{folder / ADAPTER_CONFIG} cannot be read ({first_line(error)}): "
            "save the adapter again with PEFT"
        ) from None
    settings.inference_mode = True
    return settings


def _check_base_class(base: Any, settings: Any, folder: Path) -> None:
    """Check that a model has the class that an adapter was trained on, if that is known.

    Families share names and sizes: the weights of another family's adapter may all exist in the
    model.
    """
    import transformers

    class_name = (settings.auto_mapping or {}).get("base_model_class")
    classes = {base_class.__name__ for base_class in type(base).__mro__}
    if class_name and class_name not in classes and hasattr(transformers, class_name):
        raise UnfitError(
            f"{folder / ADAPTER_CONFIG} says that it adapts a {class_name}, but "
            f"{base.name_or_path} is a {type(base).__name__}: {OTHER_BASE_ADVICE}"
        )


def _rename_layers(settings: Any, base: Any, layout: Layout, weights: Mapping[str, Tensor]) -> None:
    """Rename the layers in an adapter's settings to the model's names.

    Settings of an older layout select layers by its names, which may select other layers with
    today's names. In that case each layer is named in full.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    for setting in ("target_modules", "exclude_modules", "modules_to_save"):
        layer_names = getattr(settings, setting, None)
        if layer_names and not isinstance(layer_names, str):  # a string is a pattern, or means all
            setattr(
                settings,
                setting,
                type(layer_names)(layout.strip_wrappers(name) for name in layer_names),
            )
    for setting in _PATTERN_SETTINGS:
        values = getattr(settings, setting, None) or {}
        if values:
            setattr(
                settings, setting, {layout.strip_wrappers(name): values[name] for name in values}
            )
    targets = getattr(settings, "target_modules", None)
    if targets is None or targets in ("all-linear", "ALL-LINEAR"):
        return
    adapted_layers = {
        layout.find_owner_module(layout.to_model_name(name)) for name in weights if is_adapter(name)
    }

    def select_targets(layout_used: Layout) -> set[str]:
        names = layout_used.file_names
        return {name for name in names if check_target_module_exists(settings, names[name])}

    # If only the weights were renamed, the settings are still in another layout.
    settings_layout = next(
        (
            candidate
            for candidate in (layout, *list_layouts(base))
            if select_targets(candidate) == adapted_layers
        ),
        layout,
    )
    selected, names = select_targets(settings_layout), settings_layout.file_names
    if settings_layout.is_current or not selected:  # PEFT reports an empty selection
        return
    for setting in _PATTERN_SETTINGS:
        values = getattr(settings, setting, None) or {}
        keys = {name: get_pattern_key(list(values), names[name]) for name in selected}
        if values:
            renamed = {name: values[key] for name, key in keys.items() if key in values}
            setattr(settings, setting, renamed)
    saved_modules = getattr(settings, "modules_to_save", None)
    if saved_modules:
        settings.modules_to_save = [
            name
            for name, written in names.items()
            if any(f".{written}".endswith(f".{candidate}") for candidate in saved_modules)
        ]
    for setting in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(settings, setting):
            setattr(settings, setting, None)
    settings.target_modules = selected


def _match_adapter(
    model: Any, file: Path, weights: Mapping[str, Tensor], layout: Layout
) -> dict[str, Tensor]:
    """Return an adapter's weights by the names under which PEFT saves this model's adapter."""
    import peft

    fit = WeightMatch(
        weights,
        layout,
        required=peft.get_peft_model_state_dict(model, save_embedding_layers=False),
        others=model.state_dict(),
        prefix=PEFT_PREFIX,
    )
    fit.check(
        str(file),
        model.get_base_model().name_or_path,
        layers="layers that it adapts",
        other_model_advice=OTHER_BASE_ADVICE,
        incomplete_advice=INCOMPLETE_ADVICE,
    )
    return fit.weights


def _match_full_parts(base: Any, folder: Path) -> dict[str, Tensor]:
    """Return the weights that were trained in full next to an adapter, by the base model's names.

    A part is trained as a whole: if one of its weights is in the file, all of them must be.
    """
    file = folder / TRAINED_PARTS
    if not file.exists():
        return {}
    weights = _read_safetensors(file)
    layout = find_layout(base, weights)
    names = {layout.to_model_name(name) for name in weights}
    fit = WeightMatch(
        weights,
        layout,
        required={
            name: parameter
            for parameters in group_parameters(base).values()
            if names & parameters.keys()
            for name, parameter in parameters.items()
            if not is_adapter(name)
        },
        others=base.state_dict(),
    )
    fit.check(
        str(file),
        base.name_or_path,
        layers="modules that were trained",
        other_model_advice=OTHER_BASE_ADVICE,
        incomplete_advice=INCOMPLETE_ADVICE,
    )
    return fit.weights


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrialError(f"{file} cannot be read ({first_line(error)}): copy it again") from None
    return weights
