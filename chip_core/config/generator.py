"""The section of a configuration that says which engine answers benchmarks, and how it is checked.

Which engine answered decides figures: it is part of an evaluation's fingerprint, never of a
training's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue, field_validator, model_validator

from chip_core.config.benchmark import address_problem
from chip_core.config.fields import Section, Shorthand, engine, figure

#: Servers that are spoken to in their own way, and how each gets an arm's weights if nothing is
#: said.
_WEIGHTS: Mapping[str, Literal["path", "load_lora_adapter", "served"]] = {
    "transformers": "path",
    "vllm": "load_lora_adapter",
    "other": "served",
}

#: Options of `vllm serve` that the product writes itself, and why.
_OWN_OPTIONS = {
    "model": "it is the trial's",
    "host": "it listens on 127.0.0.1 alone",
    "port": "a free one is taken",
    "uds": "it listens on 127.0.0.1 alone",
    "api_key": "it would be written down with every figure",
    "dtype": "it is model.dtype",
    "revision": "it is model.revision",
    "trust_remote_code": "it is model.trust_remote_code",
    "served_model_name": "a model is named by its weights",
    "lora_modules": "they are the trial's",
    "enable_lora": "it is on where the trial has an adapter",
    "max_lora_rank": "it is the adapter's",
    "generation_config": "the model's own sampling is left out, as everywhere",
    "seed": "nothing is drawn",
    "hf_token": "put it into HF_TOKEN",
    "config": "write its options here",
    "middleware": "it runs code",
    "tool_parser_plugin": "it runs code",
    "reasoning_parser_plugin": "it runs code",
    "logits_processors": "it runs code",
    "worker_cls": "it runs code",
    "worker_extension_cls": "it runs code",
    "scheduler_cls": "it runs code",
}


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
    base_url: str | None = engine(None, doc="of 'openai': the server, ending in /v1")
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
    timeout: float = engine(600.0, gt=0, doc="seconds that one answer, or loading, may take")
    concurrency: int = engine(32, ge=1, doc="questions that the server has at a time")
    retries: int = engine(5, ge=0, doc="further tries of a call that failed, with growing pauses")

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        why = None if value is None else address_problem(value)
        if why is not None:
            raise ValueError(why)
        return value

    @field_validator("options")
    @classmethod
    def _options_to_give(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        for key in value:
            name = key.replace("-", "_")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{key[:40]!r} is no option of `vllm serve`")
            if name in _OWN_OPTIONS:
                raise ValueError(f"'{key}' cannot be set: {_OWN_OPTIONS[name]}")
        return value

    @model_validator(mode="after")
    def _what_its_kind_takes(self) -> GeneratorConfig:
        takes = {
            "transformers": set[str](),
            "vllm": {"options", "timeout", "concurrency", "retries"},
            "openai": set(type(self).model_fields) - {"options"},
        }[self.kind]
        for name, field in type(self).model_fields.items():
            default = field.get_default(call_default_factory=True)
            if name != "kind" and name not in takes and getattr(self, name) != default:
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
    def delivery(self) -> Literal["path", "load_lora_adapter", "served"]:
        """How an arm's weights reach a server of the user's own."""
        return self.weights or _WEIGHTS[self.server]


class EvaluationConfig(Section):
    """How benchmarks' questions are answered."""

    generator: GeneratorConfig = figure(GeneratorConfig, doc="which engine answers")
    parity: ParityConfig = figure(
        ParityConfig, doc="how another engine than transformers is checked, arm by arm"
    )

    @property
    def own(self) -> bool:
        """Whether transformers answers, in the trial's own process."""
        return self.generator.kind == "transformers"
