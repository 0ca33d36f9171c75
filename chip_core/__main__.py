"""`python -m chip_core train RECIPE`: one trial, without Ray, MLflow or a study."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chip_core import recipes
from chip_core.config import TrialConfig
from chip_core.errors import ConfigError, TrialError, UserError
from chip_core.validation import key_problem, set_key, trial_config

if TYPE_CHECKING:
    from chip_core.results import Progress
    from chip_core.training.store.passes import Offered


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the trial failed, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m chip_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one model and score it")
    train.add_argument("recipe", help="a shipped recipe's name, or a file")
    train.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="change keys of the recipe: --set optimizer.lr=1e-6 'benchmarks.report=[shapes]'",
    )  # fmt: skip
    train.add_argument(
        "--out", type=Path, default=Path("chip-trial"), help="the trial's folder (chip-trial)"
    )
    train.add_argument("--resume", type=Path, help="go on from the checkpoints in this folder")
    train.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="read the reference from the stores in this folder; make those that are missing",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        config = configuration(options.recipe, options.changes)
        return _train(config, options.out, options.resume, options.cache)
    except (UserError, TrialError) as error:
        for line in str(error).splitlines():
            print(f"chip_core: {line}", file=sys.stderr)
        return 1 if isinstance(error, TrialError) else 2
    except KeyboardInterrupt:
        print("chip_core: stopped", file=sys.stderr)
        return 130


def configuration(recipe: str, changes: Sequence[str] = ()) -> TrialConfig:
    """Return a recipe's configuration with `key=value` changes.

    Raises:
        ConfigError: every problem at once.
    """
    file = recipes.find(recipe)
    tree = recipes.read_yaml(file)
    problems = []
    for change in changes:
        key, equals, text = change.partition("=")
        complaint = key_problem(key) if equals else "is no key=value: write optimizer.lr=1e-6"
        if complaint is not None:
            problems.append(f"--set {change}: {complaint}")
        else:
            set_key(tree, key, recipes.parse_yaml(text, f"--set {key}"))
    if problems:
        raise ConfigError(problems)
    return trial_config(tree, "--set" if changes else str(file))


def _train(config: TrialConfig, out: Path, resume: Path | None, cache: Path | None) -> int:
    from chip_core.models import loading
    from chip_core.results import RESULT
    from chip_core.trial import run_trial

    broken = loading.problem(config.model)
    if broken is not None:
        raise ConfigError([f"model.path: {broken}"])
    if (out / RESULT).exists():
        raise UserError(f"{out} holds a finished trial: name another --out")
    if resume is None and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: name another --out, or go on with --resume {out}")
    if resume is not None and not resume.is_dir():
        raise UserError(f"--resume: no folder {resume}: name an earlier --out")
    if cache is not None and config.reference_cache == "off":
        raise UserError("--cache: reference_cache is off: set it to fp32 or bf16")

    def told(progress: Progress) -> None:
        figures = " ".join(f"{name}={value:.4g}" for name, value in progress.figures.items())
        print(f"{progress.phase} {progress.done}/{progress.total} {figures}".rstrip(), flush=True)

    offered = None if cache is None else _stores(config, cache, told)
    result = run_trial(config, folder=out, report=told, resume_from=resume, offered=offered)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps({"folder": str(out), "steps": result.steps, "metrics": result.metrics}))
    return 0


def _stores(config: TrialConfig, cache: Path, report: Callable[[Progress], None]) -> Offered:
    """Return the trial's reference passes; those that are missing are made."""
    from chip_core import data
    from chip_core.models import loading
    from chip_core.training.store.build import ensure
    from chip_core.training.store.passes import Offered, passes_of, samples_read

    samples = data.count(config.data)
    passes = tuple(
        one
        for one in passes_of(config, loading.identity(config.model), data.identity(config.data))
        if samples is None or samples_read(one, config, samples) > 0
    )
    for one in passes:
        ensure(one, config, cache=cache, report=report)
    return Offered(cache=cache, passes=passes)


if __name__ == "__main__":
    sys.exit(main())
