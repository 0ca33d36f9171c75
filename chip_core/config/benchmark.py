"""The configuration of benchmarks, of the engines that answer them and of the judges of answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, JsonValue, field_validator, model_validator

from chip_core.config.fields import Section, Shorthand, hashed, unhashed

#: Keys of a request that users cannot set, and why.
_RESERVED_KEYS = {
    "model": "write judge.model",
    "messages": "the benchmark sets them",
    "stream": "replies are read whole",
    "stream_options": "replies are read whole",
    "n": "one reply is read",
}
#: Names of secrets, without case, - and _.
_SECRET_NAMES = re.compile(
    r"(?:x?api)?key|(?:x?api|access|auth|bearer|id|refresh|session|secret)token|token|secret|"
    r"clientsecret|secretkey|accesskey|password|passwd|authorization|authentication|credentials?|"
    r"cookie|bearer"
)
_SECRET_ADVICE = (
    ", but this is recorded with every figure; put the key into an environment variable and name "
    "it with api_key_env"
)
#: The largest request settings allowed.
_MAX_SEND_LENGTH = 20_000  # characters, as JSON


def _validate_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # for an invalid port or IPv6 address
        is_valid = False
    if not is_valid or not address.isprintable() or " " in address:
        raise ValueError("is not an address: write https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(
            "holds a key or a query, but this address is recorded with every figure; put the key "
            "into an environment variable and name it with api_key_env"
        )
    return address


#: An endpoint's address: valid, and without secrets, because it is recorded.
Address = Annotated[str, AfterValidator(_validate_address)]


class BudgetConfig(Section):
    """The limits of a judge's cost, over all trials and studies of a work directory."""

    calls: int | None = unhashed(None, ge=1, doc="maximum number of paid calls; null: no limit")
    tokens: int | None = unhashed(
        None, ge=1, doc="maximum number of tokens, of questions and replies"
    )


class PriceConfig(Section):
    """The price of a judge's tokens, in your currency; `plan` shows the total."""

    input: float = unhashed(ge=0, doc="price of a million tokens of questions")
    output: float = unhashed(ge=0, doc="price of a million tokens of replies")


class LimitsConfig(Section):
    """The rate limits of an endpoint, shared by all trials and studies of a work directory."""

    requests_per_minute: float | None = unhashed(
        None, gt=0, doc="calls, spread evenly; null: no limit"
    )
    tokens_per_minute: int | None = unhashed(
        None,
        ge=1,
        doc="tokens of questions and replies; until a reply arrives, its maximum length is counted",
    )
    concurrency: int | None = unhashed(None, ge=1, doc="calls at a time, of all trials together")


class JudgeConfig(Shorthand):
    """A language model that judges answers, behind an OpenAI-compatible endpoint. A string is the
    model.

    Figures from another judge are not comparable: its model is part of the fingerprint.
    """

    shorthand = "model"

    model: str = hashed(min_length=1, doc="the judge's name, as the endpoint knows it")
    temperature: float | None = hashed(
        None, ge=0, doc="temperature, instead of that of the benchmark's own script"
    )
    max_tokens: int | None = hashed(None, ge=1, doc="longest reply, instead of the script's own")
    send: Mapping[str, JsonValue] = hashed(
        {},
        doc="further keys of a request and their values, instead of those above; null: do not "
        "send the key (max_tokens: null, max_completion_tokens: 512)",
    )
    base_url: Address | None = unhashed(None, doc="the endpoint, ending in /v1; null: OpenAI's")
    api_key_env: str | None = unhashed(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        doc="the environment variable that holds the key, where trials run; null: no key",
    )
    mode: Literal["live", "batch"] = unhashed(
        "live",
        doc="'live': one call per answer; 'batch': files of calls with the endpoint's batch API, "
        "which takes up to a day and costs less",
    )
    poll: float = unhashed(30.0, gt=0, doc="seconds between two checks of a batch")
    timeout: float = unhashed(60.0, gt=0, doc="seconds that one call may take")
    concurrency: int = unhashed(8, ge=1, doc="calls at a time, of one trial")
    retries: int = unhashed(5, ge=0, doc="retries of a failed call, with growing pauses")
    budget: BudgetConfig = unhashed(BudgetConfig, doc="limits of its cost")
    price: PriceConfig | None = unhashed(None, doc="price of its tokens; null: unknown")
    limits: LimitsConfig = unhashed(
        LimitsConfig, doc="rate limits of the endpoint, for all trials together"
    )

    @field_validator("send")
    @classmethod
    def _validate_send(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        for key in value:
            if key in _RESERVED_KEYS:
                raise ValueError(f"'{key}' cannot be set here: {_RESERVED_KEYS[key]}")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", key):
                raise ValueError(f"{key[:40]!r} is not a key of a request")
        try:
            text = json.dumps(value)
            names = list(_iter_keys(value))
        except RecursionError:
            raise ValueError("is nested too deep") from None
        if len(text) > _MAX_SEND_LENGTH:
            raise ValueError(f"is longer than {_MAX_SEND_LENGTH:,} characters")
        for key in names:
            if _SECRET_NAMES.fullmatch(re.sub(r"[-_.\s]", "", key.lower())):
                raise ValueError(f"'{key[:40]}' is the name of a secret{_SECRET_ADVICE}")
        for key, nested in value.items():
            if re.search(r"(?<![\w-])(?:sk|gsk|hf)[-_][\w-]{16,}", json.dumps(nested)):
                raise ValueError(f"'{key}' holds what looks like a key{_SECRET_ADVICE}")
        return value

    @model_validator(mode="after")
    def _reject_duplicate_settings(self) -> JudgeConfig:
        for key in ("temperature", "max_tokens"):
            if getattr(self, key) is not None and key in self.send:
                raise ValueError(f"{key} is set twice: remove {key} or send.{key}")
        return self


class BenchmarkConfig(Shorthand):
    """One benchmark of a study. A bare string is its name."""

    shorthand = "name"

    name: str = hashed(min_length=1, doc="the benchmark's name, or module:attr of your own")
    protocol: Literal["official", "corrected", "chip"] = hashed(
        "official",
        doc="'official': like the benchmark's own script, quirks included; 'corrected': the "
        "measure as described; 'chip': decoding and parsing as in the paper",
    )
    limit: int | None = hashed(None, ge=1, doc="a seeded subset of N questions; null: all")
    max_new_tokens: int | None = hashed(
        None, ge=1, doc="longest answer, instead of the benchmark's own"
    )
    num_beams: int | None = hashed(
        None, ge=1, doc="beams of the decoding; 1 is greedy; null: 3 under 'chip', else 1"
    )
    half: Literal["select", "report"] | None = hashed(
        None,
        doc="for a benchmark without its own split: the half to tune on, or the other one",
    )
    half_seed: int = hashed(0, ge=0, doc="seed of the draw that halves it")
    judge: JudgeConfig | None = hashed(
        None, doc="who judges the answers, if the benchmark needs a judge"
    )

    @model_validator(mode="after")
    def _check_half_seed(self) -> BenchmarkConfig:
        if self.half is None and self.half_seed != 0:
            raise ValueError(
                "half_seed has no effect if all questions are asked: write `half`, too"
            )
        return self


class BenchmarksConfig(Section):
    """`select` is for tuning, `report` for the reported figures."""

    select: tuple[BenchmarkConfig, ...] = hashed((), doc="may choose hyper-parameters")
    report: tuple[BenchmarkConfig, ...] = hashed((), doc="only for the table")
    primary: str | None = unhashed(
        None,
        doc="the primary metric of a study that sets neither `benchmarks` nor `primary`",
    )

    @model_validator(mode="after")
    def _check_unique_names(self) -> BenchmarksConfig:
        for side in ("select", "report"):
            names = [benchmark.name for benchmark in getattr(self, side)]
            if len(set(names)) != len(names):
                raise ValueError(f"{side}: a benchmark is named twice: name each once")
        return self

    @model_validator(mode="after")
    def _check_halves(self) -> BenchmarksConfig:
        for side in ("select", "report"):
            for benchmark in getattr(self, side):
                if benchmark.half not in (None, side):
                    raise ValueError(
                        f"{side}: '{benchmark.name}' uses the half for `{benchmark.half}`: write "
                        f"`half: {side}`"
                    )
        return self

    @property
    def select_only(self) -> BenchmarksConfig:
        """Only the benchmarks used for selection."""
        return BenchmarksConfig(select=self.select)

    @property
    def report_only(self) -> BenchmarksConfig:
        """Only the benchmarks that are reported."""
        return BenchmarksConfig(report=self.report)


def _iter_keys(value: Any) -> Iterator[str]:
    """Yield the keys of a JSON value, at any depth."""
    if isinstance(value, Mapping):
        for key, nested in value.items():
            yield key
            yield from _iter_keys(nested)
    elif isinstance(value, list):
        for nested in value:
            yield from _iter_keys(nested)


@dataclass(frozen=True, kw_only=True)
class DataPaths:
    """Folders and files of the machine that a trial runs on."""

    #: `--benchmark-data`: one folder per benchmark, with the benchmark's name and published layout
    benchmark_data: Path | None = None
    judge_cache: Path | None = None  # where judges' replies are stored, for all trials
    judge_replies: Path | None = None  # `--judge-replies`: replies to use instead of a judge's

    def benchmark_folder(self, benchmark: str) -> Path | None:
        """Return a benchmark's folder, which may not exist.

        For my.module:Mine it is my.module.Mine.
        """
        if self.benchmark_data is None:
            return None
        return self.benchmark_data / benchmark.replace(":", ".")


#: Servers with their own interface, and how each gets an arm's weights by default.
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
    """How an engine's answers are compared with transformers' before any figure counts."""

    items: int = hashed(
        64,
        ge=1,
        doc="questions of each benchmark that transformers answers, too; drawn with a seed",
    )
    share: float = hashed(
        0.95, gt=0, le=1, doc="minimum share of them with exactly the same answer"
    )


class GeneratorConfig(Shorthand):
    """The engine that answers. A string is its kind."""

    shorthand = "kind"

    kind: Literal["transformers", "vllm", "openai"] = hashed(
        "transformers",
        doc="'transformers': in the trial's own process; 'vllm': a vLLM server that the trial "
        "starts and stops; 'openai': an OpenAI-compatible server of your own",
    )
    server: Literal["vllm", "transformers", "other"] = hashed(
        "other",
        doc="for 'openai': the kind of server, which gets the extra keys that make it answer "
        "like transformers; 'other' gets none",
    )
    version: str | None = hashed(
        None,
        min_length=1,
        doc="for 'openai': the server's version, because other versions answer differently",
    )
    base_url: Address | None = unhashed(
        None, doc="for 'openai': the server's address, ending in /v1"
    )
    model: str | None = unhashed(
        None,
        min_length=1,
        doc="for 'openai': the untrained model's name there; null: its folder or hub name",
    )
    weights: Literal["path", "load_lora_adapter", "served"] | None = unhashed(
        None,
        doc="for 'openai': how an arm's weights reach the server; 'path': it reads the folder "
        "that a request names as its model; 'load_lora_adapter': vLLM's endpoint of that "
        "name loads them; 'served': you serve them under the name that the trial prints; "
        "null: the server's default",
    )
    api_key_env: str | None = unhashed(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        doc="for 'openai': the environment variable that holds the key, where trials run; "
        "null: no key",
    )
    options: Mapping[str, JsonValue] = hashed(
        {},
        doc="for 'vllm': further options of `vllm serve`, without dashes (max_model_len: 4096)",
    )
    serves: Literal["trial", "study"] = unhashed(
        "trial",
        doc="for 'vllm': what a server serves; 'trial': each trial starts one on its own GPUs; "
        "'study': one server for all arms, on its own GPUs, holds all their adapters",
    )
    timeout: float = unhashed(600.0, gt=0, doc="seconds that one answer, or loading, may take")
    concurrency: int = unhashed(32, ge=1, doc="questions sent to the server at a time")
    retries: int = unhashed(5, ge=0, doc="retries of a failed call, with growing pauses")

    @field_validator("options")
    @classmethod
    def _validate_options(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        for key, setting in value.items():
            name = key.replace("-", "_")
            if name not in _ALLOWED_OPTIONS:
                advice = _OPTION_ADVICE.get(name, f"choose from {', '.join(_ALLOWED_OPTIONS)}")
                raise ValueError(f"{key[:40]!r} cannot be set: {advice}")
            if isinstance(setting, str) and setting.startswith("-"):
                raise ValueError(f"'{key}' begins with -, like an option: write its value")
            if name == "distributed_executor_backend" and setting not in _DISTRIBUTED_BACKENDS:
                raise ValueError(f"'{key}' is none of {', '.join(_DISTRIBUTED_BACKENDS)}")
            if name.endswith("_parallel_size") and (type(setting) is not int or setting < 1):
                raise ValueError(
                    f"'{key}' is not a whole number of 1 or more: GPUs are counted by it"
                )
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
                raise ValueError(f"generator '{self.kind}' does not use {name}: remove it")
        if self.kind == "openai" and self.base_url is None:
            raise ValueError("generator 'openai' needs base_url: write http://HOST:PORT/v1")
        if self.kind == "openai" and self.version is None:
            raise ValueError(
                "generator 'openai' needs version: write the server's version, because other "
                "versions answer differently"
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

    generator: GeneratorConfig = hashed(GeneratorConfig, doc="which engine answers")
    parity: ParityConfig = hashed(
        ParityConfig, doc="how an engine other than transformers is checked, arm by arm"
    )

    @property
    def in_process(self) -> bool:
        """Whether transformers answers, in the trial's own process."""
        return self.generator.kind == "transformers"

    @property
    def has_study_server(self) -> bool:
        """Whether one server answers for the arms of a study."""
        return self.generator.kind == "vllm" and self.generator.serves == "study"
