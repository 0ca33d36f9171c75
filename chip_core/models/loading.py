"""Load a configuration's model and processor."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.models import ADAPTER_CONFIG as ADAPTER_CONFIG
from chip_core.models import own
from chip_core.models.processing import (
    find_template_problem,
    load_processor,
    read_source_json,
    register_family,
    set_template,
)
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.errors import TrialError, UnfitError, first_line
from chip_core.utils.files import expand_path, read_json

if TYPE_CHECKING:
    from chip_core.models.precision import Precision

#: Families whose projector, or a part of it, is within the vision tower.
PROJECTOR_IN_TOWER = frozenset({"qwen2_5_vl", "qwen3_vl", "muffin"})

#: Chat templates in addition to the default one.
_EXTRA_TEMPLATES_GLOB = "additional_chat_templates/*.jinja"

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def find_local_folder(path: str) -> Path | None:
    """Return the folder that a model path refers to; None for a hub name."""
    if path == "shapes":
        return MODEL_FOLDER
    folder = expand_path(path)
    exists = os.path.exists(folder)  # False for a name that no file can have
    if not exists and _HUB_NAME.fullmatch(path) and not path.startswith("."):
        return None
    return folder


def find_model_problem(model: ModelConfig) -> str | None:
    """Return what is wrong with a model's folder before anything is started; None if nothing.

    A hub name is not checked here.
    """
    folder = find_local_folder(model.path)
    if folder is None:
        return own.find_revision_problem(model)
    if not os.path.isdir(folder):
        return f"no folder {folder}: name a folder with a Hugging Face model, or a hub name"
    if (folder / ADAPTER_CONFIG).exists():
        return f"{folder} holds an adapter: name its base model, or export it with --merge"
    try:
        config = read_json(folder / "config.json")
        model_type = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        return (
            f"{folder}/config.json cannot be read ({first_line(error)}): not a Hugging Face model"
        )
    if not isinstance(model_type, str):
        return f"{folder}/config.json names no model_type: not a Hugging Face model"
    if model_type in own.CONVERTERS:
        return (
            f"{folder} is a checkpoint in its released form: convert it with "
            f"{own.CONVERTERS[model_type]}"
        )
    runs_own_code = model.trust_remote_code and own.has_own_model(config)
    if not (runs_own_code or _is_image_text_to_text(model_type)):
        if own.has_own_model(config):
            return (
                f"{folder} has its own code for model_type {model_type}: read it, and write "
                "model.trust_remote_code: true to run it"
            )
        return (
            f"{folder}/config.json: model_type {model_type} is not an image-text-to-text model of "
            "transformers: name a vision-language model, such as one of llava, llava_next, "
            "qwen2_5_vl, qwen3_vl, idefics3, smolvlm, muffin"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return f"no *.safetensors in {folder}: convert the weights with save_pretrained"
    missing = _find_missing_shards(folder)
    if missing:
        return f"{folder} lacks {', '.join(missing)}: copy the folder again"
    from safetensors import SafetensorError, safe_open

    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file} cannot be read ({first_line(error)}): copy the weights again"
    # The embedded model's type is known, and planning it needs no transformers.
    is_known = folder == MODEL_FOLDER or model_type in own.FAMILIES
    if not (is_known or own.has_own_model(config)):
        template_error = find_template_problem(folder, model_type)
        if template_error is not None:
            return f"{folder} {template_error}"
    return None


def has_projector_in_tower(model: ModelConfig) -> bool:
    """Return whether a model's vision tower holds a part of its projector.

    A hub name is not checked and counts as False.
    """
    folder = find_local_folder(model.path)
    if folder is None:
        return False
    try:
        raw = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and raw.get("model_type") in PROJECTOR_IN_TOWER


def find_label_rule_problem(config: TrialConfig) -> str | None:
    """Return what is wrong with a configuration's label rule for its model; None if nothing.

    A hub name, or a folder with problems of its own, is not checked.
    """
    rule, folder = config.training.label_rule, find_local_folder(config.model.path)
    if rule == "clean" or folder is None or find_model_problem(config.model) is not None:
        return None
    model_type = read_json(folder / "config.json")["model_type"]
    if model_type in own.LABEL_RULE_FAMILIES:
        return None
    return (
        f"{rule}: a {model_type} scores only the response: write clean, or name a model of "
        f"{', '.join(sorted(own.LABEL_RULE_FAMILIES))}"
    )


def identity(model: ModelConfig) -> dict[str, Any]:
    """Return what a fingerprint includes of a model: its content, not its location."""
    folder = find_local_folder(model.path)
    if folder is None:
        code = {"code": "its own"} if model.trust_remote_code else {}
        return {"hub": model.path, "revision": model.revision or "main", **code}
    digest = hashlib.sha256()
    suffixes = {".safetensors", ".json", ".jinja", ".model", ".txt"}
    scripts = sorted(folder.rglob("*.py")) if model.trust_remote_code else []
    for file in [*sorted(folder.iterdir()), *sorted(folder.glob(_EXTRA_TEMPLATES_GLOB)), *scripts]:
        if file.suffix in suffixes or file in scripts:
            digest.update(file.name.encode() + b"\0")
            with file.open("rb") as opened:  # a weights file may be larger than memory
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    code = {"code": "its own"} if model.trust_remote_code else {}
    return {"content": digest.hexdigest(), **code}


def make_base_weights_id(model: ModelConfig) -> str:
    """Return an identifier of an untrained model's weights."""
    return json.dumps(identity(model), sort_keys=True)


def load(
    model: ModelConfig,
    *,
    attention: str = "auto",
    trained: Path | None = None,
    config: TrialConfig | None = None,
) -> tuple[Any, Any]:
    """Return (model, processor) in `model.dtype`, on the CPU, in evaluation mode.

    Weights are read from safetensors only. Code of the model's folder is run only with
    `model.trust_remote_code`.

    Args:
        model: the model.
        attention: the kind of attention; "auto" leaves it to transformers.
        trained: a trained model's folder, Hugging Face or PEFT, to load instead of the model.
        config: the trial that will train the model; None: nobody writes to its weights.

    Raises:
        TrialError: it cannot be loaded completely.
    """
    from chip_core.models.adapters import load_adapter
    from chip_core.models.base_models import BASE_MODELS
    from chip_core.models.parts import skip_unread_layers

    is_adapter = trained is not None and (trained / ADAPTER_CONFIG).exists()
    if trained is not None and not is_adapter:
        model = model.model_copy(update={"path": str(trained), "revision": None})
    source, options = _validate_source(model)

    def read_model() -> tuple[Any, Any]:
        loaded_model = load_complete(
            source, attention, dtype=model.dtype, quantize=model.quantize, **options
        )
        skip_unread_layers(loaded_model)
        return loaded_model.eval(), _load_processor(source, options)

    if not BASE_MODELS.is_enabled:
        loaded, processor = read_model()
    elif trained is not None:  # for one attempt; trained parts overwrite base weights
        BASE_MODELS.move_off_gpu()
        loaded, processor = read_model()
    else:
        key = (attention, model.dtype, model.quantize, make_content_key(model))
        loaded, processor = BASE_MODELS.get(key, read_model, config)
    if is_adapter:
        assert trained is not None
        loaded = load_adapter(loaded, trained)
    return loaded.eval(), processor


def load_empty(model: ModelConfig, *, attention: str = "auto") -> tuple[Any, Any]:
    """Return (model, processor) like `load`, the model's weights with shapes and no memory.

    For a worker that receives its part of them from the worker that loads them.

    Args:
        model: the model; not quantized.
        attention: as for `load`.

    Raises:
        TrialError: it cannot be built.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from chip_core.models.parts import skip_unread_layers
    from chip_core.models.precision import DTYPES

    source, options = _validate_source(model)
    register_family(source, options.get("revision"))
    attention_options: dict[str, Any] = (
        {} if attention == "auto" else {"attn_implementation": attention}
    )
    try:
        with torch.device("meta"):
            empty = AutoModelForImageTextToText.from_config(
                AutoConfig.from_pretrained(source, **options),
                dtype=DTYPES[model.dtype],
                trust_remote_code=model.trust_remote_code,
                **attention_options,
            )
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise TrialError(
            f"{source} cannot be loaded ({first_line(error)}): {_suggest_fix(error)}"
        ) from None
    skip_unread_layers(empty)
    return empty.eval(), _load_processor(source, options)


def has_weights(model: Any) -> bool:
    """Return whether a model has its weights; one of `load_empty` has only their shapes."""
    return not any(parameter.is_meta for parameter in model.parameters())


def make_content_key(model: ModelConfig) -> Hashable:
    """Return a key that is equal for models with the same files, within this process."""
    state = _get_folder_state(find_local_folder(model.path))
    return model.path, model.revision, model.trust_remote_code, state


def _get_folder_state(folder: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Return a value that changes when a file of a model's folder changes."""
    files = [] if folder is None else sorted(folder.iterdir())
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def load_processor_only(model: ModelConfig) -> Any:
    """Return a model's processor, as `load` returns it, without the model.

    Raises:
        TrialError: it cannot be loaded, or makes no prompts.
    """
    return _load_processor(*_validate_source(model))


def import_libraries(*, adapters: bool) -> None:
    """Import the libraries for loading a model, so that their time is measured separately.

    Args:
        adapters: whether the model gets adapters.
    """
    import transformers.modeling_utils  # noqa: F401

    if adapters:
        import peft  # noqa: F401


def load_complete(
    source: str,
    attention: str = "auto",
    *,
    dtype: Precision = "fp32",
    quantize: Literal["none", "nf4"] = "none",
    **options: Any,
) -> Any:
    """Return a model with exactly the source's weights: none missing, none left over.

    Args:
        source: a folder or a hub name.
        attention: the kind of attention; "auto" leaves it to transformers.
        dtype: the dtype of the weights.
        quantize: the quantization of the language model's linear layers.
        options: of `from_pretrained`: `revision`, `trust_remote_code`.

    Raises:
        UnfitError: weights are missing, too many, of another shape or not finite.
        TrialError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    from chip_core.models.fit import check_finite
    from chip_core.models.precision import DTYPES, disable_repacking, make_nf4_config

    register_family(source, options.get("revision"))
    model_options: dict[str, Any] = (
        {} if attention == "auto" else {"attn_implementation": attention}
    )
    if quantize == "nf4":
        model_options["quantization_config"] = make_nf4_config(source, DTYPES[dtype], **options)
    logging.disable_progress_bar()  # no progress bar for each load of each trial
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports a misfit as a table; ours is one line
    try:
        loaded, loading_info = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # all of them are reported below
            **model_options,
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        raise TrialError(
            f"{source} cannot be loaded ({first_line(error)}): {_suggest_fix(error)}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    if quantize == "nf4":
        disable_repacking(loaded)
    _check_weights(source, loaded, loading_info)
    check_finite(source, loaded.state_dict())
    return loaded


def _suggest_fix(error: Exception) -> str:
    """Return what to do about a model that transformers does not load."""
    for model_type, command in own.CONVERTERS.items():
        if model_type in str(error):
            return f"it is in its released form: download it, and convert it with {command}"
    if "attention" in str(error).lower():
        return "choose engine.attention: sdpa"
    return "check the name and the network, or name a folder with its files"


def read_weights(model: Any, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Load the weights of a trained model's folder into a model built the same way.

    Args:
        model: the model to load into.
        folder: a Hugging Face or PEFT folder.
        trust_remote_code: `model.trust_remote_code`.

    Raises:
        UnfitError: they do not fit; the model is unchanged.
        TrialError: they cannot be read.
    """
    from chip_core.models import adapters
    from chip_core.models.fit import WeightMatch, find_layout
    from chip_core.models.shards import load_weights

    if adapters.is_adapted(model):
        adapters.read_adapter(model, folder)
        return
    weights = load_complete(str(folder), trust_remote_code=trust_remote_code).state_dict()
    fit = WeightMatch(
        weights,
        find_layout(model, weights),
        required=dict(model.named_parameters()),
        others=model.state_dict(),
    )
    fit.check(
        str(folder),
        "the model",
        layers="modules",
        other_model_advice=adapters.OTHER_BASE_ADVICE,
        incomplete_advice=adapters.INCOMPLETE_ADVICE,
    )
    load_weights(model, fit.weights)


def _check_weights(source: str, loaded: Any, loading_info: Mapping[str, Any]) -> None:
    """Check that a source has the same weights as a model, by names and shapes."""
    from chip_core.models.fit import find_wrapper, format_names, format_shape

    missing = sorted(loading_info["missing_keys"])
    unexpected = sorted(loading_info["unexpected_keys"])
    misshapen = [
        f"{name} is {format_shape(source_shape)}, in the model {format_shape(model_shape)}"
        for name, source_shape, model_shape in sorted(loading_info["mismatched_keys"])
    ]
    if misshapen:
        raise UnfitError(
            f"{source}: {len(misshapen)} of its weights have another shape than its config.json "
            f"says ({format_names(misshapen)}): copy weights and config.json from the same model"
        )
    if missing:
        wrapper_name = find_wrapper(unexpected)
        advice = (
            "copy the weights again"
            if wrapper_name is None
            else f"they have '{wrapper_name}' in their names, because a wrapped model (DDP, FSDP, "
            "torch.compile) was saved: save the model inside the wrapper"
        )
        raise UnfitError(
            f"{source} lacks {len(missing)} of its weights ({format_names(missing)}), which would "
            f"be random: {advice}"
        )
    adapter_weights = [name for name in unexpected if ".lora_" in name]
    if adapter_weights:  # other extra weights, such as a draft head, do no harm
        raise UnfitError(
            f"{source} has {len(adapter_weights)} weights of an adapter that a "
            f"{type(loaded).__name__} does not have ({format_names(adapter_weights)}), so they "
            "would be left out: merge the adapter and save the model again with save_pretrained"
        )


def _validate_source(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return a model's folder or hub name, and the options that it is loaded with.

    Raises:
        TrialError: something is wrong with it.
    """
    source_problem = find_model_problem(model)
    if source_problem is not None:
        raise TrialError(source_problem)
    folder = find_local_folder(model.path)
    source = model.path if folder is None else str(folder)
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if folder is None and model.revision is not None:
        options["revision"] = model.revision
    if model.trust_remote_code:
        own.check_own_code(
            source, **{name: options[name] for name in options.keys() & {"revision"}}
        )
    return source, options


def _load_processor(source: str, options: Mapping[str, Any]) -> Any:
    """Return a processor that can render a prompt and end a response, with a padding token."""
    processor = load_processor(source, **options)
    revision = {name: options[name] for name in options.keys() & {"revision"}}
    template_error = set_template(
        processor, lambda name: read_source_json(source, name, **revision)
    )
    if template_error is not None:
        raise TrialError(f"{source} {template_error}")
    if processor.tokenizer.eos_token_id is None:
        raise TrialError(
            f"{source}: its tokenizer has no end of sequence: set eos_token in "
            "tokenizer_config.json"
        )
    if processor.tokenizer.pad_token_id is None:  # any token will do, because it is masked
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _is_image_text_to_text(model_type: str) -> bool:
    if model_type == "llava" or model_type in own.FAMILIES:
        return True  # also the embedded one: planning it needs no transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
    )

    return model_type in KNOWN


def _find_missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return []
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [f"a readable {index.name}"]
    present = {path.name for path in folder.iterdir()}  # a shard is always next to its index
    return sorted(str(shard) for shard in shards if shard not in present)
