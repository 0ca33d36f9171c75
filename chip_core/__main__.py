"""`python -m chip_core train RECIPE`: one trial, without Ray, MLflow or a study.

Several processes share it under `torchrun --nproc-per-node N -m chip_core train RECIPE`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chip_core import recipes
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import find_key_problem, parse_trial_config, set_key
from chip_core.utils.errors import ConfigError, TrialError, UserError
from chip_core.utils.machine import cpu_seconds
from chip_core.utils.workers import Workers, join_workers

if TYPE_CHECKING:
    from chip_core.reference_cache.spec import AvailableCaches
    from chip_core.results import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the trial failed, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m chip_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one model and score it")
    train.add_argument("recipe", help="a shipped recipe's name, or a file")
    train.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="override keys of the recipe: --set optimizer.lr=1e-6 'benchmarks.report=[shapes]'",
    )  # fmt: skip
    train.add_argument(
        "--out", type=Path, default=Path("chip-trial"), help="the trial's folder (chip-trial)"
    )
    train.add_argument("--resume", type=Path, help="resume from the checkpoints in this folder")
    train.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="read the reference from the caches in this folder; build missing ones",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        config = load_configuration(options.recipe, options.changes)
        with join_workers() as workers:
            return _train(config, options.out, options.resume, options.cache, workers)
    except (UserError, TrialError) as error:
        for line in str(error).splitlines():
            print(f"chip_core: {line}", file=sys.stderr)
        return 1 if isinstance(error, TrialError) else 2
    except KeyboardInterrupt:
        print("chip_core: stopped", file=sys.stderr)
        return 130


def load_configuration(recipe: str, changes: Sequence[str] = ()) -> TrialConfig:
    """Return a recipe's configuration with `key=value` changes.

    Raises:
        ConfigError: every problem at once.
    """
    file = recipes.find_recipe(recipe)
    tree = recipes.read_yaml(file)
    problems = []
    for change in changes:
        key, equals, text = change.partition("=")
        problem = find_key_problem(key) if equals else "is not key=value: write optimizer.lr=1e-6"
        if problem is not None:
            problems.append(f"--set {change}: {problem}")
        else:
            set_key(tree, key, recipes.parse_yaml(text, f"--set {key}"))
    if problems:
        raise ConfigError(problems)
    return parse_trial_config(tree, "--set" if changes else str(file))


def _train(
    config: TrialConfig, out: Path, resume: Path | None, cache: Path | None, workers: Workers
) -> int:
    from chip_core import data

    began, began_cpu = time.perf_counter(), cpu_seconds()
    from chip_core.models import loading
    from chip_core.trial import run_trial

    problems_by_key = {
        "model.path": loading.find_model_problem(config.model),
        "data.source": data.find_source_problem(config.data),
        "objective": data.find_objective_problem(config.data, config.objective),
        "training.label_rule": loading.find_label_rule_problem(config),
    }
    problems = [
        f"{key}: {problem}" for key, problem in problems_by_key.items() if problem is not None
    ]
    if problems:
        raise ConfigError(problems)
    if cache is not None and config.reference_cache == "off":
        raise UserError("--cache: reference_cache is off: set it to fp32 or bf16")
    if workers.is_main:
        _check_folders(config, out, resume)
        if config.objective.warning is not None:
            print(f"chip_core: caution: {config.objective.warning}", file=sys.stderr)
    workers.barrier()  # another process could mistake the first one's files for an earlier trial

    def print_progress(progress: Progress) -> None:
        figures = " ".join(f"{name}={value:.4g}" for name, value in progress.figures.items())
        print(f"{progress.phase} {progress.done}/{progress.total} {figures}".rstrip(), flush=True)

    report = print_progress if workers.is_main else lambda progress: None
    caches = None
    if cache is not None:
        if workers.is_main:
            _prepare_caches(config, cache, report)
        workers.barrier()
        caches = _prepare_caches(config, cache, report)
    result = run_trial(
        config,
        folder=out,
        report=report,
        resume_from=resume,
        began=began,
        began_cpu=began_cpu,
        caches=caches,
    )
    if workers.is_main:
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        print(json.dumps({"folder": str(out), "steps": result.steps, "metrics": result.metrics}))
    return 0


def _check_folders(config: TrialConfig, out: Path, resume: Path | None) -> None:
    from chip_core.results import RESULT

    if (out / RESULT).exists():
        raise UserError(f"{out} holds a finished trial: choose another --out")
    if resume is None and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"{out} is not empty: choose another --out, or continue with --resume {out}"
        )
    if resume is not None and not resume.is_dir():
        raise UserError(f"--resume: no folder {resume}: name an earlier --out")
    if resume is not None:
        _check_settings(config, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out: {out} cannot be created ({error.strerror}): choose another"
        ) from None


def _check_settings(config: TrialConfig, folder: Path) -> None:
    """Check that the trained model being reused was trained with the current settings.

    Raises:
        UserError: it was trained with other settings, or they are not recorded.
    """
    from chip_core.config.identity import training_identity
    from chip_core.results import CONFIG, MODEL
    from chip_core.utils.files import read_json

    if not (folder / MODEL).is_dir():
        return
    try:
        recorded = read_json(folder / CONFIG)
        # Models trained before this setting existed dropped transparency.
        recorded["data"] = {"transparency": "drop", **recorded["data"]}
        earlier = TrialConfig.model_validate(recorded)
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"--resume: {folder} holds a model, but no {CONFIG} that describes it"
        ) from None
    settings = [
        training_identity(
            variant, variant.model.model_dump(), variant.data.model_dump(exclude={"transparency"})
        )
        for variant in (earlier, config)
    ]
    if settings[0] != settings[1]:
        raise UserError(f"--resume: {folder} holds a model trained with other settings")


def _prepare_caches(
    config: TrialConfig, cache: Path, report: Callable[[Progress], None]
) -> AvailableCaches:
    """Return the trial's reference passes; compute those that are missing."""
    from chip_core import data
    from chip_core.models import loading
    from chip_core.reference_cache.build import ensure_caches
    from chip_core.reference_cache.spec import AvailableCaches, count_samples_read, list_cache_specs

    samples = data.count_rows(config.data)
    passes = tuple(
        spec
        for spec in list_cache_specs(
            config, loading.identity(config.model), data.identity(config.data)
        )
        if samples is None or count_samples_read(spec, config, samples) > 0
    )
    ensure_caches(passes, config, cache=cache, report=report)
    return AvailableCaches(cache=cache, passes=passes)


if __name__ == "__main__":
    sys.exit(main())
