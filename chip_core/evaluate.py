"""Evaluate an existing model on benchmarks, without training or a study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from chip_core.config.benchmark import BenchmarkConfig, BenchmarksConfig, DataPaths
from chip_core.config.trial import EvaluationConfig, ModelConfig
from chip_core.evaluation.generators import generator_problems, missing_requirements, open_generator
from chip_core.evaluation.generators.answering import (
    InferenceContext,
    generate_answers,
    generate_reference_answers,
)
from chip_core.evaluation.readiness import find_benchmark_problems
from chip_core.evaluation.scoring import score_answers
from chip_core.evaluation.task import Side
from chip_core.models import loading
from chip_core.results import Evaluation, Progress
from chip_core.trained import check_model, get_weights_fingerprint, hash_weights_content
from chip_core.utils.errors import ConfigError, UserError
from chip_core.utils.files import read_json
from chip_core.utils.workers import current_workers

_log = logging.getLogger(__name__)


def evaluate_model(  # noqa: PLR0913 (options of the public function)
    model: str,
    benchmarks: Sequence[BenchmarkConfig],
    *,
    folder: Path,
    data_paths: DataPaths,
    base: str | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 64,
    answering: EvaluationConfig | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Evaluation]:
    """Return the figures of each benchmark for a Hugging Face or PEFT folder, or a hub name.

    Answers of the same weights that are already in `folder` are reused.

    Args:
        model: 'shapes', a folder, or a hub name.
        benchmarks: the benchmarks to evaluate.
        folder: gets answers, responses and scores.
        data_paths: where the benchmarks' data are.
        base: the base model of a PEFT folder; None: the one that the folder names.
        dtype: the precision of generation.
        batch_size: items answered together.
        answering: which engine answers; None: transformers, in this process.
        report: called with the progress.

    Raises:
        UserError: there is no such model, or something that a benchmark needs is missing.
        TrialError: the model cannot be loaded or cannot answer.
    """
    requested = BenchmarksConfig(report=tuple(benchmarks))
    config, trained = resolve_model(model, base, dtype)
    answering = answering or EvaluationConfig()
    missing = [
        *find_model_problems(model, config, trained, base),
        *find_benchmark_problems(requested, data_paths),
    ]
    if not answering.in_process:
        missing += generator_problems(answering, requested, config)
        missing += missing_requirements(answering)
    if missing:
        raise ConfigError(missing)
    report(Progress(phase="start", done=0, total=1))
    loaded, processor = loading.load(config, trained=trained)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    context = InferenceContext(
        model=loaded,
        processor=processor,
        weights=make_weights_id(config, trained, hash_weights_content),
        former_weights=[make_weights_id(config, trained)],
        folder=folder,
        data_paths=data_paths,
        batch_size=batch_size,
        bf16=dtype == "bf16",
        report_progress=report,
        checkpoint_dir=None if trained is not None else loading.find_local_folder(config.path),
        parity=answering.parity,
        base=config,
        trained=trained,
    )
    with open_generator(answering, folder) as generator:
        context = replace(context, generator=generator)
        for settings in benchmarks:
            generate_reference_answers(context, "report", settings)
        return {settings.name: evaluate(context, "report", settings) for settings in benchmarks}


def resolve_model(
    model: str, base: str | None, dtype: Literal["fp32", "bf16"]
) -> tuple[ModelConfig, Path | None]:
    """Return the model to load and the PEFT folder to apply to it.

    Args:
        model: 'shapes', a folder, or a hub name.
        base: the base model of a PEFT folder; None: the one that the folder names.
        dtype: the precision it computes in.

    Raises:
        UserError: `base` is given for a model without one, or is required and missing.
    """
    folder = Path(model).expanduser()
    if not (folder / loading.ADAPTER_CONFIG).exists():
        if base is not None:
            raise UserError(f"--base: {model} holds no adapter: leave it out")
        return ModelConfig(path=model, dtype=dtype), None
    try:
        base_name = read_json(folder / loading.ADAPTER_CONFIG)["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base_name = None
    path = base or base_name
    if not path:
        raise UserError(f"{model} holds an adapter that names no base model: give it with --base")
    if base_name and not _is_same_model(str(base_name), str(path)):
        file = folder / loading.ADAPTER_CONFIG
        _log.warning(
            "%s names %s as its base model, but --base applies it to %s", file, base_name, base
        )
    return ModelConfig(path=str(path), dtype=dtype), folder


def find_model_problems(
    model: str, config: ModelConfig, trained: Path | None, base: str | None
) -> list[str]:
    """Return what is wrong with a named model, without loading it.

    Raises:
        TrialError: it is a trained model whose files have changed.
    """
    if (folder := trained or loading.find_local_folder(config.path)) is not None:
        check_model(folder)
    problem = loading.find_model_problem(config)
    if problem is not None and trained is not None and base is None:
        problem = f"its base model: {problem}; if it is elsewhere, give it with --base"
    return [] if problem is None else [f"{model}: {problem}"]


def _is_same_model(first: str, second: str) -> bool:
    """Return whether two names mean the same model; local folders are compared by path."""
    folders = [loading.find_local_folder(name) for name in (first, second)]
    if None in folders:
        return first == second
    return len({folder.resolve() for folder in folders if folder is not None}) == 1


def make_weights_id(
    config: ModelConfig,
    trained: Path | None,
    fingerprint_folder: Callable[[Path], str] = get_weights_fingerprint,
) -> str:
    """Return an identifier of a named model's weights.

    Args:
        config: the model.
        trained: the PEFT folder that is applied to it.
        fingerprint_folder: returns the identifier of that folder.
    """
    base = loading.make_base_weights_id(config)
    return base if trained is None else f"{base} {fingerprint_folder(trained)}"


def evaluate(context: InferenceContext, side: Side, settings: BenchmarkConfig) -> Evaluation:
    """Answer a benchmark's questions with a model and score the answers.

    With several workers (torch.distributed), each answers its share, the first one scores, and all
    return the same result.

    Raises:
        TrialError: something that the benchmark needs is missing, or its judge does not reply.
    """
    result = generate_answers(context, side, settings)
    if isinstance(result, Evaluation):
        return result
    answers = result
    return current_workers().wait_for_rank0(
        lambda: score_answers(
            answers,
            side,
            settings,
            folder=context.folder,
            data_paths=context.data_paths,
            report_progress=context.report_progress,
        )
    )
