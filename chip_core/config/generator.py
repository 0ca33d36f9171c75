"""The configuration sections of the engine that answers benchmarks, and of its checks.

The engine affects figures: it is part of an evaluation's fingerprint, never of a training's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue, field_validator, model_validator

from chip_core.config.benchmark import Address
from chip_core.config.fields import Section, Shorthand, engine, figure

#: Servers with an interface of their own, and how each gets an arm's weights by default.
_DEFAULT_DELIVERY: Mapping[str, Literal["path", "load_lora_adapter", "served"]] = {
    "transformers": "path",
    "vllm": "load_lora_adapter",
    "other": "served",
}

#: Options of `vllm serve` that users may set: how it uses the machine, and what it accepts. Others
#: name code or files, open connections, or are set by the product.
_ALLOWED_OPTIONS = (
    *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"),
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    *("distributed_executor_backend", "enable_expert_parallel", "disable_custom_all_reduce"),
    *("enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "async_scheduling"),
    *("kv_cache_dtype", "kv_cache_memory_bytes", "block_size", "swap_space", "cpu_offload_gb"),
    *("limit_mm_per_prompt", "mm_processor_kwargs", "mm_processor_cache_gb", "skip_mm_profiling"),
    *("mm_encoder_tp_mode", "quantization", "fully_sharded_loras"),
)
#: Where to set what is not allowed here.
_OPTION_ADVICE = {
    "dtype": "write model.dtype",
    "revision": "write model.revision",
    "trust_remote_code": "write model.trust_remote_code",
    "hf_token": "put it into HF_TOKEN",
}
#: vLLM imports any other text as a class.
_DISTRIBUTED_BACKENDS = ("mp", "ray", "uni")


class ParityConfig(Section):
    """How an engine's answers are checked against transformers' before any figure counts."""

    items: int = figure(
        64, ge=1, doc="questions of each benchmark that transformers answers too, drawn by a seed"
    )
    share: float = figure(
        0.95, gt=0, le=1, doc="least share of them that is answered alike, to the letter"
    )


class GeneratorConfig(Shorthand):
    """Which engine answers. A string is its kind."""

    shorthand = "kind"

    kind: Literal["transformers", "vllm", "openai"] = figure(
        "transformers",
        doc="'transformers': in the trial's own process; 'vllm': a vLLM server that the trial "
        "starts and stops; 'openai': a server of your own that speaks as OpenAI's does",
    )
    server: Literal["vllm", "transformers", "other"] = figure(
        "other",
        doc="of 'openai': what the server is: it gets the extra keys that make it answer as "
        "transformers would; 'other' gets none",
    )
    version: str | None = figure(
        None, min_length=1, doc="of 'openai': the server's version: answers of others are others"
    )
    base_url: Address | None = engine(None, doc="of 'openai': the server, ending in /v1")
    model: str | None = engine(
        None,
        min_length=1,
        doc="of 'openai': the untrained model's name there; null: its folder or hub name",
    )
    weights: Literal["path", "load_lora_adapter", "served"] | None = engine(
        None,
        doc="of 'openai': how an arm's weights reach the server; 'path': it reads the folder that "
        "a request names as its model; 'load_lora_adapter': vLLM's endpoint of that name loads "
        "them; 'served': you serve them by the name that the trial tells; null: by the server",
    )
    api_key_env: str | None = engine(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        doc="of 'openai': the environment variable that holds the key, where trials run; "
        "null: no key",
    )
    options: Mapping[str, JsonValue] = figure(
        {},
        doc="of 'vllm': further options of `vllm serve`, without dashes (max_model_len: 4096)",
    )
    serves: Literal["trial", "study"] = engine(
        "trial",
        doc="of 'vllm': whom a server serves; 'trial': each starts one, on its own GPUs; 'study': "
        "one for all arms, on GPUs of its own, which holds their adapters side by side",
    )
    timeout: float = engine(600.0, gt=0, doc="seconds that one answer, or loading, may take")
    concurrency: int = engine(32, ge=1, doc="questions that the server has at a time")
    retries: int = engine(5, ge=0, doc="further tries of a call that failed, with growing pauses")

    @field_validator("options")
    @classmethod
    def _validate_options(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        for key, setting in value.items():
            name = key.replace("-", "_")
            if name not in _ALLOWED_OPTIONS:
                advice = _OPTION_ADVICE.get(name, f"choose from {', '.join(_ALLOWED_OPTIONS)}")
                raise ValueError(f"{key[:40]!r} cannot be set: {advice}")
            if isinstance(setting, str) and setting.startswith("-"):
                raise ValueError(f"'{key}' begins with -, as an option does: write its value")
            if name == "distributed_executor_backend" and setting not in _DISTRIBUTED_BACKENDS:
                raise ValueError(f"'{key}' is none of {', '.join(_DISTRIBUTED_BACKENDS)}")
            if name.endswith("_parallel_size") and (type(setting) is not int or setting < 1):
                raise ValueError(f"'{key}' is no whole number of 1 or more: GPUs are counted by it")
        return value

    @model_validator(mode="after")
    def _check_kind_settings(self) -> GeneratorConfig:
        allowed = {
            "transformers": set[str](),
            "vllm": {"options", "serves", "timeout", "concurrency", "retries"},
            "openai": set(type(self).model_fields) - {"options", "serves"},
        }[self.kind]
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if name != "kind" and name not in allowed and getattr(self, name) != default:
                raise ValueError(f"generator '{self.kind}' takes no {name}: remove it")
        if self.kind == "openai" and self.base_url is None:
            raise ValueError("generator 'openai' needs base_url: write http://HOST:PORT/v1")
        if self.kind == "openai" and self.version is None:
            raise ValueError(
                "generator 'openai' needs version: write which version the server is, since "
                "another's answers are others"
            )
        return self

    @property
    def gpus(self) -> int:
        """The number of GPUs that a vLLM server uses, if there are any."""
        options = {key.replace("-", "_"): value for key, value in self.options.items()}
        sizes = (options.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data"))
        return math.prod(size for size in sizes if isinstance(size, int))

    @property
    def delivery(self) -> Literal["path", "load_lora_adapter", "served"]:
        """How an arm's weights reach a server that the user runs."""
        return self.weights or _DEFAULT_DELIVERY[self.server]


class EvaluationConfig(Section):
    """How benchmarks' questions are answered."""

    generator: GeneratorConfig = figure(GeneratorConfig, doc="which engine answers")
    parity: ParityConfig = figure(
        ParityConfig, doc="how another engine than transformers is checked, arm by arm"
    )

    @property
    def in_process(self) -> bool:
        """Whether transformers answers, in the trial's own process."""
        return self.generator.kind == "transformers"
