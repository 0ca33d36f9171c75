"""Collect pairs of answers for people to compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from chip_core.config.benchmark import DataPaths
from chip_core.config.trial import BenchmarkConfig
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.task import Side
from chip_core.utils.errors import UserError
from chip_core.utils.registry import suggest
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.state.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """Two arms' answers to one item, both trained with the same seed."""

    item: str
    seed: int
    prompt: str
    first: str
    second: str

    @property
    def differs(self) -> bool:
        """Whether the two answers differ."""
        return self.first.strip() != self.second.strip()


@dataclass(frozen=True, kw_only=True)
class AnswerPool:
    """All pairs of answers that two arms gave on a benchmark."""

    arms: tuple[str, str]
    side: Side
    settings: BenchmarkConfig
    seeds: tuple[int, ...]
    pairs: tuple[AnswerPair, ...]
    trials: Mapping[str, str]  # "ARM, seed N" -> fingerprint

    @property
    def benchmark(self) -> str:
        """Its name as in the study's metrics: "shapes", "select/shapes"."""
        return self.settings.name if self.side == "report" else f"select/{self.settings.name}"


def load_answer_pool(
    plan: Plan, ledger: Ledger, storage: Path, *, arms: tuple[str, str], benchmark: str
) -> AnswerPool:
    """Return two arms' answers on a benchmark, for every seed that both have.

    Args:
        plan: the study's plan.
        ledger: what has been run.
        storage: the folder with the attempts' folders.
        arms: their names; differences are those of the second to the first.
        benchmark: its name; "select/NAME" for the questions used to tune.

    Raises:
        UserError: there is no such arm or benchmark, or no seed with answers of both arms.
    """
    if arms[0] == arms[1]:
        raise UserError(f"--arms: '{arms[0]}' against itself: name two arms")
    first, second = (find_arm(plan, name) for name in arms)
    if first.placebo or second.placebo:
        raise UserError(
            "--arms: a placebo has its own seeds, but answers of the same seed are compared: "
            "name two other arms"
        )
    side, settings = find_benchmark_settings(plan, benchmark)
    key = f"{side}/{settings.name}"
    seeds: list[int] = []
    trials: dict[str, str] = {}
    pairs: list[AnswerPair] = []
    for first_trial, second_trial in zip(first.trials, second.trials, strict=True):
        first_answers, second_answers = (
            read_trial_answers(trial, key, ledger, storage) for trial in (first_trial, second_trial)
        )
        if not first_answers or not second_answers:
            continue
        assert first_trial.seed is not None and first_trial.seed == second_trial.seed
        seeds.append(first_trial.seed)
        trials |= {
            first_trial.name: first_trial.fingerprint,
            second_trial.name: second_trial.fingerprint,
        }
        pairs += [
            AnswerPair(
                item=item,
                seed=first_trial.seed,
                prompt=prompt,
                first=answer,
                second=second_answers[item][1],
            )
            for item, (prompt, answer) in first_answers.items()
            if item in second_answers
        ]
    if not pairs:
        raise UserError(
            f"study {plan.study.name}: there is no seed for which both arms have answers to "
            f"{benchmark}: run the study first, or give its --workdir"
        )
    return AnswerPool(
        arms=(first.name, second.name),
        side=side,
        settings=settings,
        seeds=tuple(seeds),
        pairs=tuple(pairs),
        trials=trials,
    )


def load_item_images(
    pool: AnswerPool, items: Iterable[str], data_paths: DataPaths
) -> dict[str, list[Image.Image]]:
    """Return the images of some items.

    Args:
        pool: names the benchmark.
        items: ids of the items.
        data_paths: the locations of the benchmarks' data.

    Raises:
        UserError: the benchmark no longer has an item.
    """
    item_ids = set(items)
    selected, _ = select_items(
        pool.side, pool.settings, find_benchmark(pool.settings.name), data_paths
    )
    images = {
        entry.id: [picture.read() for picture in entry.pictures]
        for entry in selected
        if entry.id in item_ids
    }
    if len(images) < len(item_ids):
        missing_item = sorted(item_ids - images.keys())[0]
        raise UserError(
            f"{pool.benchmark} no longer has the item {missing_item}: run the study again"
        )
    return images


def find_arm(plan: Plan, name: str) -> Arm:
    """Return the arm with this name.

    Raises:
        UserError: the study has no such arm.
    """
    for arm in plan.arms:
        if name == arm.name:
            return arm
    names = [arm.name for arm in plan.arms]
    raise UserError(f"--arms: study {plan.study.name} has no arm '{name}': {suggest(name, names)}")


def find_benchmark_settings(plan: Plan, name: str) -> tuple[Side, BenchmarkConfig]:
    """Return the side of a study's benchmark, and the benchmark's settings.

    Raises:
        UserError: the study has no such benchmark.
    """
    scored = plan.study.scored_benchmarks
    settings_by_name: dict[str, tuple[Side, BenchmarkConfig]] = {
        **{settings.name: ("report", settings) for settings in scored.report},
        **{f"select/{settings.name}": ("select", settings) for settings in scored.select},
    }
    if name not in settings_by_name:
        raise UserError(
            f"--benchmark: study {plan.study.name} has no benchmark '{name}': "
            f"{suggest(name, settings_by_name)}"
        )
    return settings_by_name[name]


def read_trial_answers(
    trial: Trial, key: str, ledger: Ledger, storage: Path
) -> dict[str, tuple[str, str]] | None:
    """Return item -> (prompt, response); None if the trial has none.

    Raises:
        UserError: they exist and cannot be read.
    """
    scored = ledger[trial.fingerprint].evaluations.get(trial.evaluations[key])
    if scored is None:
        return None
    file = storage / scored.folder / scored.evaluation.responses
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        return {row["item"]: (row["prompt"], row["response"]) for row in rows}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{trial.name}: its answers in {file} cannot be read ({error})") from None
