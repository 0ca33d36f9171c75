"""Open the engine that a configuration names; check what it needs, and whom one server serves."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chip_core.config.benchmark import EvaluationConfig
from chip_core.config.trial import BenchmarksConfig, ModelConfig, TrialConfig
from chip_core.evaluation.generators.base import Generator
from chip_core.evaluation.items import find_benchmark, resolve_decoding
from chip_core.evaluation.readiness import list_sides
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.models import loading, own
from chip_core.utils.files import read_json

#: The values that vLLM accepts as the largest rank of adapters.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@contextmanager
def open_generator(
    config: EvaluationConfig, folder: Path, server: Path | None = None
) -> Iterator[Generator | None]:
    """Open the engine that answers; None: transformers, in this process.

    Args:
        config: the evaluation's configuration.
        folder: the attempt's folder, for the files of a served model while it is served, and for
            a server's log.
        server: the file with the address of the study's own server, if it has one.

    Raises:
        TrialError: that server is gone.
    """
    if config.in_process:
        yield None
        return
    generator: Generator
    if server is not None:
        from chip_core.evaluation.generators.shared import SharedGenerator

        generator = SharedGenerator(config.generator, folder, server)
    elif config.generator.kind == "vllm":
        from chip_core.evaluation.generators.vllm import VllmGenerator

        generator = VllmGenerator(config.generator, folder)
    else:
        from chip_core.evaluation.generators.openai import OpenAIGenerator

        generator = OpenAIGenerator(config.generator, folder)
    try:
        yield generator
    finally:
        generator.close()


def generator_problems(
    config: EvaluationConfig, benchmarks: BenchmarksConfig, model: ModelConfig
) -> list[str]:
    """Return why an engine other than transformers cannot answer on any machine, and what to do."""
    problems = [f"benchmarks.{line}" for line in _unsupported_benchmarks(config, benchmarks)]
    if config.generator.kind == "vllm" and model.quantize != "none":
        problems.append(
            "evaluation.generator: vLLM is started with unquantized weights, but model.quantize "
            f"is {model.quantize}: write evaluation.generator: transformers, or model.quantize: "
            "none"
        )
    if (family := _custom_model_type(model)) is not None:
        problems.append(
            f"evaluation.generator: no server supports {family}, which is this package's own: "
            "write evaluation.generator: transformers"
        )
    return problems


def missing_requirements(config: EvaluationConfig) -> list[str]:
    """Return what an engine other than transformers lacks on this machine, where a trial runs."""
    return [f"evaluation.{line}" for line in _missing_tools(config)]


def _missing_tools(config: EvaluationConfig) -> Iterator[str]:
    generator = config.generator
    extra = "vllm" if generator.kind == "vllm" else "judge"
    if importlib.util.find_spec("openai") is None:
        yield (
            "generator: engines are called with the package openai: pip install "
            f"'chip-ablate[{extra}]'"
        )
    if generator.kind == "vllm":
        from chip_core.evaluation.generators.vllm import NO_PROGRAM, find_program

        if find_program() is None:
            yield f"generator: {NO_PROGRAM}"
    name = generator.api_key_env
    if name is not None and not os.environ.get(name):
        yield (
            f"generator.api_key_env: {name} is not set: put the key into it, or leave out "
            "api_key_env if the server needs none"
        )


def _unsupported_benchmarks(
    config: EvaluationConfig, benchmarks: BenchmarksConfig
) -> Iterator[str]:
    kind = config.generator.kind
    for side, settings in list_sides(benchmarks):
        try:
            benchmark = find_benchmark(settings.name)
        except ValueError:
            continue  # reported with the benchmarks
        if isinstance(benchmark, ExternalBenchmark):
            yield (
                f"{side}: {settings.name} uses its own program, which cannot use "
                f"evaluation.generator '{kind}': leave out one of the two"
            )
        elif (beams := resolve_decoding(settings, benchmark).num_beams) > 1:
            yield (
                f"{side}: {settings.name} needs {beams} beams, but generator '{kind}' only "
                "decodes greedily: write num_beams: 1, or evaluation.generator: transformers"
            )


def _custom_model_type(model: ModelConfig) -> str | None:
    folder = loading.find_local_folder(model.path)
    try:
        family = None if folder is None else read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # reported with the model
    return family if family in own.FAMILIES else None


def rank_problem(rank: int) -> str | None:
    """Return why vLLM takes no adapters of this rank, with what to do."""
    if rank <= RANKS[-1]:
        return None
    return (
        f"vLLM accepts adapters of rank up to {RANKS[-1]}, but this one has {rank}: "
        "write evaluation.generator: transformers"
    )


def is_servable(config: TrialConfig) -> bool:
    """Return whether a training changes only an adapter on the language model."""
    parts = (config.vision_encoder, config.projector, config.language_model)
    return parts == ("frozen", "frozen", "lora")


def largest_rank(configs: Iterable[TrialConfig]) -> int:
    """Return the largest rank of the adapters that one server takes; 0: it takes none."""
    return max((config.lora.rank for config in configs if is_servable(config)), default=0)


def sharing_problems(configs: Sequence[TrialConfig]) -> list[str]:
    """Return why one server cannot answer for a study's trials, with what to do.

    Args:
        configs: all trials that the study may train.
    """
    condition = "evaluation.generator.serves is study"
    models = {config.model for config in configs}
    if len(models) > 1:
        return [
            f"{condition}, but this study has {len(models)} base models, and one server can hold "
            "only one: write serves: trial"
        ]
    rank = largest_rank(configs)
    if rank == 0:
        return [
            f"{condition}, but no arm trains an adapter on its language model alone "
            "(language_model: lora, the other parts frozen), and one server can hold nothing "
            "else: write serves: trial"
        ]
    problem = rank_problem(rank)
    return [] if problem is None else [f"{condition}: {problem}"]
