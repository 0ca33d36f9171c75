"""The precision of a model's weights, and computing in fp32 with weights of lower precision.

`model.quantize: nf4` is QLoRA's (arXiv 2305.14314), through transformers and bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from chip_core.utils.errors import TrialError

Precision = Literal["fp32", "bf16"]

#: `model.dtype` -> torch's dtype.
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

#: Bytes per weight in NF4: 4 bits, an 8-bit scale per 64, and a 32-bit one per 256 of those.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def get_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that a model computes in: that of its weights."""
    return next(model.parameters()).dtype


def convert_weights(model: Any, precision: Precision) -> Any:
    """Convert a model's weights to a precision, in place, and return the model.

    Buffers are unchanged: the frequencies of rotary positions are fp32 in every model.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(DTYPES[precision])
    return model


def is_quantized(module: nn.Module) -> bool:
    """Return whether a layer's weight is packed: a `Linear4bit` of bitsandbytes."""
    return hasattr(getattr(module, "weight", None), "quant_state")


def match_dtype(inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Return a model's inputs, with pixels and the like in bf16 if the model computes in bf16.

    For other models they are unchanged.
    """
    if model.get_input_embeddings().weight.dtype != torch.bfloat16:  # fp32 within `compute_in_fp32`
        return dict(inputs)
    return {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in inputs.items()
    }


@contextmanager
def compute_in_fp32(
    model: nn.Module, leaves: Sequence[nn.Parameter] = ()
) -> Iterator[list[Tensor]]:
    """Let a model of lower precision compute in fp32 while the context is open.

    Each weight is converted where it is used, and freed then: there is no second copy of the model.

    Args:
        model: not sharded.
        leaves: weights whose gradient is needed.

    Yields:
        Stand-ins for the leaves, whose gradients are fp32. For a model in fp32 or higher, the
        leaves themselves.
    """
    if get_dtype(model) != torch.bfloat16:
        yield list(leaves)
        return
    stand_ins = {id(leaf): leaf.detach().float().requires_grad_() for leaf in leaves}
    floating = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point()
    ]
    quantized: list[Any] = [module for module in model.modules() if is_quantized(module)]
    registered: list[tuple[nn.Module, str]] = []
    try:
        for module in quantized:  # unpacked 4-bit weights are multiplied in fp32, too
            module.compute_dtype = torch.float32
        for module, name, parameter in floating:
            parametrization = _FP32Weight(stand_ins.get(id(parameter)))
            parametrize.register_parametrization(module, name, parametrization, unsafe=True)
            registered.append((module, name))
        with _WidenActivations():
            yield [stand_ins[id(leaf)] for leaf in leaves]
    finally:
        for module in quantized:
            module.compute_dtype = torch.bfloat16
        for module, name in registered:  # this order restores the order of their names
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


class _WidenActivations(TorchFunctionMode):
    """Convert bf16 tensors between layers: some families round to the dtype of their weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*_to_fp32(args), **_to_fp32(dict(kwargs or {})))


def _to_fp32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    if type(value) in (tuple, list):
        return type(value)(map(_to_fp32, value))
    if type(value) is dict:
        return {name: _to_fp32(entry) for name, entry in value.items()}
    return value


class _FP32Weight(nn.Module):
    """A weight in fp32."""

    def __init__(self, stand_in: Tensor | None) -> None:
        super().__init__()
        self._stand_in = [stand_in]  # in a list, so that it is not registered as a weight

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float() if self._stand_in[0] is None else self._stand_in[0]


def make_nf4_config(source: str, dtype: torch.dtype, **options: Any) -> Any:
    """Return transformers' quantization settings for a model's decoder linear layers.

    Vision encoder, projector and output head stay as they are: they are a small part of a model,
    and every arm has the same base model, whichever parts it trains.

    Args:
        source: a folder or a hub name.
        dtype: the dtype to compute in.
        options: of `from_pretrained`: `revision`, `trust_remote_code`.

    Raises:
        TrialError: bitsandbytes is not installed.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise TrialError(
            "model.quantize is nf4, but bitsandbytes is not installed here: "
            "pip install 'chip-ablate[nf4]', or write model.quantize: none"
        )
    with torch.device("meta"):
        meta_model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(source, **options),
            trust_remote_code=bool(options.get("trust_remote_code")),
        )
    quantized = {id(weight) for weight in find_quantized_weights(meta_model)}
    others = [
        name
        for name, module in meta_model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in quantized
    ]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=others,
    )


def find_quantized_weights(model: Any) -> list[Tensor]:
    """Return the weights that are stored in 4 bits: the decoder's linear layers, without adapters.

    Args:
        model: not quantized yet, or only used to compute sizes.
    """
    return [
        module.weight
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]


def disable_repacking(model: nn.Module) -> None:
    """Keep a pass without gradients from changing the weights.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a weight for its own kernel in the first
    such pass, rounds its scales to bf16, and from then on computes in bf16 in passes with gradients
    too (findings/bitsandbytes_linear4bit_repacks.sh).
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
