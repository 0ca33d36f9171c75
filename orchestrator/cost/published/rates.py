"""Rates from operations, bytes and published figures, for a device that nothing was recorded on.

A rate is a time with a range: at the most and at the least of a device's peak that work of its kind
is taken to use (devices.py names the sources). Start-up, reading data and Ray are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from chip_core.config.benchmark import BenchmarkConfig
from chip_core.config.trial import TrialConfig
from chip_core.evaluation.benchmarks.published import SOURCES
from chip_core.evaluation.items import find_benchmark
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.reference_cache.size import published_rows
from chip_core.utils.errors import TrialError
from orchestrator.cost.kinds import LIVE, reference_kind, row_kind, score_kind
from orchestrator.cost.published.devices import EAGER_LAYERS, EAGER_TOKENS, UTILIZATION, Device
from orchestrator.cost.rates import NO_TIME, Quantity, RateSource, Seconds, Size
from orchestrator.cost.workload import CacheBuildWork, TrialWork, Workload

#: The name of both sources.
SOURCE_NAME = "published rates"

#: Tokens of an answer that is a yes, a no or a letter, at the least and at the most; of any other,
#: as a share of the longest. Taken, not measured.
_CLOSED, _OPEN = (2, 16), (0.1, 1.0)

#: The share of a benchmark's questions whose answers are not closed; else all.
_OPEN_SHARE = {
    "amber": 1_004 / 15_220,
    "hallusionbench": 0.0,
    "mmmu": 0.0,
    "pope": 0.0,
    "scienceqa": 0.0,
}

#: Questions, where the publisher's own list has no count: docs/evaluation.md.
_QUESTION_COUNTS = {"objhal": 300}


@dataclass(frozen=True, kw_only=True)
class RateRange:
    """What published figures say, at their best and at their worst."""

    fast: RateSource
    slow: RateSource


def published_rates(
    work: Workload, device: Device, notify: Callable[[str], None] = lambda text: None
) -> RateRange | None:
    """Return rates of a study's GPU work on a device; None where no model's sizes are known.

    Args:
        work: what is left of a study.
        device: the device.
        notify: told of each kind of step that is counted: a large model's takes a while.
    """
    rates: dict[tuple[Quantity, str], tuple[float, float]] = {}
    sizes: dict[tuple[Size, str], int] = {}
    counter = _OperationCounter(notify)
    for trial_work in work.trials:
        for key, value in _trial_rates(trial_work, device, counter):
            rates.setdefault(key, value)
        sizes |= _row_sizes(trial_work.config)
        for questions in trial_work.questions.values():
            count = _published_questions(questions.settings)
            if count is not None:
                sizes["questions", questions.kind] = count
    for group in work.passes:
        for key, value in _pass_rates(group, device, counter):
            rates.setdefault(key, value)
        sizes |= _row_sizes(group.config)
    if not counter.has_counts:
        return None
    fast, slow = (
        RateSource(
            name=SOURCE_NAME,
            rates={
                key: Seconds(wall=value[index], cpu=value[index]) if value[index] else NO_TIME
                for key, value in rates.items()
            },
            sizes=sizes,
        )
        for index in (0, 1)
    )
    return RateRange(fast=fast, slow=slow)


@dataclass(frozen=True, kw_only=True)
class _ModelCost:
    """What a trial's model computes and reads."""

    step: int  # operations of a pair, forward and backward
    forward: int  # of a pair
    token: float  # of a token of a prompt, its image's share of the tower in it
    prompt: int  # tokens of a question with its image
    layers: int
    weights: int  # bytes, as they are used


class _OperationCounter:
    """Counts operations, once for each kind of pass."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._say = notify
        self._known: dict[str, _ModelCost | None] = {}

    @property
    def has_counts(self) -> bool:
        """Whether anything was counted."""
        return any(self._known.values())

    def count(self, config: TrialConfig) -> _ModelCost | None:
        """Return what a pair takes; None where the model's sizes are not known."""
        tree = config.model_dump(mode="json", include={"model", "lora", "data", "objective"})
        parts = (config.vision_encoder, config.projector, config.language_model)
        key = repr([tree, parts, config.training.max_length])
        if key not in self._known:
            self._say(f"operations of a step: kind {len(self._known) + 1}")
            self._known[key] = _count_operations(config)
        return self._known[key]


def _count_operations(config: TrialConfig) -> _ModelCost | None:
    from chip_core.training.footprint.estimate import estimate_operations
    from chip_core.training.footprint.published import load_model_config
    from orchestrator.cost.published.rows import estimate_row_shapes

    single = config.model_copy(
        update={"engine": config.engine.model_copy(update={"micro_batch": 1})}
    )
    try:
        model_config = load_model_config(config.model)
        if model_config is None:
            return None
        shape = estimate_row_shapes(model_config, single).typical
        counts = estimate_operations(model_config, single, shape)
    except (ValueError, AttributeError, TrialError):  # a family that this is not made for
        return None
    text = model_config.get_text_config()
    layer = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    weights = text.num_hidden_layers * layer + text.vocab_size * text.hidden_size
    return _ModelCost(
        step=counts.step,
        forward=counts.forward,
        token=counts.forward / shape.tokens(config.objective.policy_reads),
        prompt=shape.prompt,
        layers=text.num_hidden_layers,
        weights=round(weights * _weight_bytes(config)),
    )


def _weight_bytes(config: TrialConfig) -> float:
    """Return the bytes of a weight that are read for each token that is decoded."""
    if config.model.quantize == "nf4":
        from chip_core.models.precision import NF4_BYTES

        return NF4_BYTES
    return 2 if config.model.dtype == "bf16" else 4


def _trial_rates(
    work: TrialWork, device: Device, counter: _OperationCounter
) -> Iterator[tuple[tuple[Quantity, str], tuple[float, float]]]:
    config = work.config
    model = counter.count(config) if config.engine.gpus_per_worker else None
    if model is None:
        return
    yield ("imports", work.start), (0.0, 0.0)
    yield ("model", work.start), (0.0, 0.0)
    yield ("row", work.row), (0.0, 0.0)
    if work.training is not None:
        live = reference_kind(config, work.caches) == LIVE
        pairs = config.training.batch_size / work.processes
        yield ("setup", work.training), (0.0, 0.0)
        yield (
            ("step", work.training),
            _compute_seconds((model.step + live * model.forward) * pairs, config, device),
        )
    for questions in work.questions.values():
        fast, slow = _compute_seconds(model.prompt * model.token, config, device)
        decoding = _decoding_limits(questions.settings)
        if decoding is not None:
            tokens, beams = decoding
            rows = max(1, config.engine.generation_batch)
            min_token_time = model.weights / (device.bandwidth * 1e12)
            max_token_time = model.layers / (EAGER_LAYERS * EAGER_TOKENS)
            open_share = _OPEN_SHARE.get(questions.settings.name, 1.0)
            shortest, longest = (
                open_share * open_part * tokens + (1 - open_share) * min(tokens, closed_tokens)
                for open_part, closed_tokens in zip(_OPEN, _CLOSED, strict=True)
            )
            fast += shortest * min_token_time / rows
            slow += longest * max(min_token_time, max_token_time) * beams / rows
            yield ("answer", questions.kind), (fast, slow)
        yield ("score", score_kind(questions.settings)), (0.0, 0.0)


def _pass_rates(
    group: CacheBuildWork, device: Device, counter: _OperationCounter
) -> Iterator[tuple[tuple[Quantity, str], tuple[float, float]]]:
    config = group.config
    model = counter.count(config) if config.engine.gpus_per_worker else None
    if model is not None:
        yield ("row", row_kind(config)), (0.0, 0.0)
        yield ("sample", group.kind), _compute_seconds(model.forward, config, device)


def training_mode(config: TrialConfig) -> Literal["lora", "full"]:
    """Return how a trial trains what most of its time goes to."""
    full_modes = {"full", "trained", "staged"}
    large_parts = (config.language_model, config.vision_encoder)  # a projector is small
    if config.language_model == "lora" or (
        config.has_adapters and full_modes.isdisjoint(large_parts)
    ):
        return "lora"
    return "full"


def _compute_seconds(operations: float, config: TrialConfig, device: Device) -> tuple[float, float]:
    """Return the seconds of operations on a device: at most and at least of its peak used."""
    peak = 1e12 * (device.bf16 if config.model.dtype == "bf16" else device.fp32)
    share = UTILIZATION[training_mode(config)]
    return operations / (peak * share.high), operations / (peak * share.low)


def _decoding_limits(settings: BenchmarkConfig) -> tuple[int, int] | None:
    """Return the longest answer, in tokens, and the beams; None where a program asks."""
    benchmark = find_benchmark(settings.name)
    if isinstance(benchmark, ExternalBenchmark):
        return None
    decoding = benchmark.decoding(settings.protocol)
    return (
        settings.max_new_tokens or decoding.max_new_tokens,
        settings.num_beams or decoding.num_beams,
    )


def _published_questions(settings: BenchmarkConfig) -> int | None:
    """Return how many questions a benchmark publishes, of which so many are asked."""
    source = SOURCES.get(settings.name)
    total = _QUESTION_COUNTS.get(settings.name, None if source is None else source.count)
    if total is None:
        return None
    count = total // 2 if settings.half is not None else total
    return count if settings.limit is None else min(count, settings.limit)


def _row_sizes(config: TrialConfig) -> dict[tuple[Size, str], int]:
    count = published_rows(config.data)
    return {} if count is None else {("rows", row_kind(config)): count}
