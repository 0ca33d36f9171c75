"""A language model's linear layers in 4 bits (`model.quantize: nf4`): QLoRA, arXiv 2305.14314."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.utils.errors import TrialError

#: Bytes of a weight: 4 bits, a scale of 8 bits for each 64, and one of 32 bits for 256 of those.
BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def settings(source: str, dtype: torch.dtype, **options: Any) -> Any:
    """Return how transformers is to quantize a model: its decoder's linear layers, and no other.

    Vision encoder, projector and output head stay as they are: they are a small part of a model,
    and so every arm has the same base model, whichever of its parts it trains.

    Args:
        source: a folder or a hub name.
        dtype: what is computed in.
        options: of `from_pretrained`: `revision`, `trust_remote_code`.

    Raises:
        TrialError: bitsandbytes is not installed.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise TrialError(
            "model.quantize is nf4, and bitsandbytes is not installed here: "
            "pip install 'chip-ablate[nf4]', or write model.quantize: none"
        )
    with torch.device("meta"):
        plain = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(source, **options),
            trust_remote_code=bool(options.get("trust_remote_code")),
        )
    packed = {id(weight) for weight in quantized_weights(plain)}
    others = [
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in packed
    ]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=others,
    )


def quantized_weights(model: Any) -> list[Tensor]:
    """Return the weights that are held in 4 bits: of the decoder's linear layers, without adapters.

    Args:
        model: not quantized yet, or to be sized alone.
    """
    return [
        module.weight
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]


def keep_packed(model: nn.Module) -> None:
    """See to it that a pass without gradients leaves the weights as they are.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks a weight for its own kernel in the first
    such pass, rounds its scales to bf16 in doing so, and from then on computes in bf16 in passes
    with gradients too (findings/bitsandbytes_linear4bit_repacks.sh).
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
