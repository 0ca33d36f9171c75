"""Labels of single answers: sample answers to label, read labels, correct the judge's figures.

People answer the judge's own question: is this answer hallucinated (1 or 0), how good is it (the
benchmark's points). The same items are drawn for all arms, each with the answers of one training
seed, so that the difference of two arms is a paired one.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from chip_core.evaluation.reading import read_rows
from chip_core.utils.errors import UserError
from chip_core.utils.seeding import derive_seed
from orchestrator.analysis.prediction_powered import PredictionPoweredEstimate
from orchestrator.human_eval.judge import (
    JudgeAgreement,
    JudgeValues,
    agreement_to_json,
    compute_agreement,
    correct_mean,
    figures_to_json,
)
from orchestrator.human_eval.pairs import find_arm, find_benchmark_settings, read_trial_answers
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.report.units import shown_unit_scale, to_shown_unit
from orchestrator.report.writers.exports import format_csv
from orchestrator.state.ledger import Ledger

LABELS_KIND = "labels"
LABEL_COLUMNS = ("id", "item", "question", "answer", "label")

#: arm -> item -> seed -> people's labels of that answer
Labels = Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]


@dataclass(frozen=True, kw_only=True)
class LabelledArm:
    """An arm's figure corrected by labels; differences are to the baseline, over shared items."""

    arm: str
    agreement: JudgeAgreement
    figures: PredictionPoweredEstimate
    difference: PredictionPoweredEstimate | None


@dataclass(frozen=True, kw_only=True)
class LabelFigures:
    """All figures from a file of labels."""

    study: str
    judge: JudgeValues
    baseline: str
    export: str  # a hash of the labels
    trials: Mapping[str, str]  # "ARM, seed N" -> fingerprint, of labelled trials
    unjudged: int  # labels of answers without a value of the judge
    arms: tuple[LabelledArm, ...]

    @property
    def name(self) -> str:
        """The stem of its file names: further labels of a metric overwrite the files of fewer."""
        return f"labels-{self.judge.metric.replace('/', '-').replace(':', '-')}"


def draw_labels(
    plan: Plan,
    ledger: Ledger,
    storage: Path,
    judge: JudgeValues,
    *,
    arms: Sequence[str],
    items: int,
    seed: int,
) -> tuple[str, int]:
    """Return a CSV of answers to label, in random order, and its number of items.

    With the study, a row's `id` identifies the answer; no row names an arm or a seed.

    Raises:
        UserError: there is no such arm, or no item to which all arms have judged answers.
    """
    side, settings = find_benchmark_settings(plan, judge.benchmark)
    chosen = [find_arm(plan, name) for name in arms] or list(plan.arms)
    answers: dict[str, Mapping[str, tuple[str, str]]] = {}
    for trial in _iter_trials(chosen):
        trial_responses = (
            read_trial_answers(trial, f"{side}/{settings.name}", ledger, storage) or {}
        )
        judged = judge.values.get(trial.fingerprint, {})
        answers[trial.fingerprint] = {
            item: answer for item, answer in trial_responses.items() if item in judged
        }
    seeds: dict[str, list[Sequence[Trial]]] = {}  # item -> trials of each seed, one per arm
    for trials in zip(*(arm.trials for arm in chosen), strict=True):
        for item in set.intersection(
            *(set(answers.get(trial.fingerprint, {})) for trial in trials)
        ):
            seeds.setdefault(item, []).append(trials)
    if not seeds:
        raise UserError(
            f"study {plan.study.name}: there is no item of {judge.benchmark} for which all arms "
            f"have answers with a value of {judge.metric}: run the study first, or name fewer "
            "--arms"
        )
    random = Random(derive_seed("labels", seed, judge.metric))
    order = random.sample(sorted(seeds), len(seeds))[:items]
    rows = [
        (_answer_id(trial, item), item, *answers[trial.fingerprint][item], "")
        for index, item in enumerate(order)
        for trial in seeds[item][index % len(seeds[item])]
    ]
    random.shuffle(rows)
    return format_csv(LABEL_COLUMNS, rows), len(order)


def read_labels(files: Sequence[Path], plan: Plan, judge: JudgeValues) -> Labels:
    """Return the labels of files, without rows that have no label.

    Rows of CSV, JSON or JSON lines hold `label`, and either `id` as drawn, or `item`, `arm` and
    `seed`. An answer that is labelled again has several labels.

    Raises:
        UserError: a file has no labels, a row names no answer of the study, or a label is invalid.
    """
    answers_by_id = {
        _answer_id(trial, item): (trial, item)
        for trial in _iter_trials(plan.arms)
        for item in judge.values.get(trial.fingerprint, {})
    }
    names = {trial.name: trial for trial in _iter_trials(plan.arms)}
    labels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for location, row in (entry for file in files for entry in _read_label_rows(file)):
        raw_label = row.get("label")
        if raw_label is None or str(raw_label).strip() == "":
            continue
        label = _parse_label(raw_label, judge, location)
        trial, item = _find_answer(row, answers_by_id, names, location)
        assert trial.seed is not None
        item_labels = labels.setdefault(trial.arm, {}).setdefault(item, {})
        item_labels.setdefault(trial.seed, []).append(label)
    if not labels:
        raise UserError(f"{files[0]}: no row has a label yet: fill in the column `label`")
    return labels


def compute_label_figures(plan: Plan, judge: JudgeValues, labels: Labels) -> LabelFigures:
    """Return each arm's figure by the judge, corrected by labels, and its difference.

    Raises:
        UserError: the metric is not a mean over items, or the judge has no value of any label.
    """
    if not judge.is_mean:
        raise UserError(
            f"--metric: {judge.metric} is a ratio of sums, but labels can only correct means over "
            "items: choose another"
        )
    trials = {(trial.arm, trial.seed): trial for trial in _iter_trials(plan.arms)}
    arms: dict[str, _ArmValues] = {}
    unjudged = 0
    for arm in plan.arms:
        arm_values = _collect_arm_values(arm, judge, labels.get(arm.name, {}))
        unjudged += arm_values.unjudged
        if arm_values.pairs:
            arms[arm.name] = arm_values
    if not arms:
        raise UserError(f"{judge.metric} has no value for any labelled answer")
    baseline = arms.get(plan.baseline.name)
    text = repr(sorted((arm, sorted(items.items())) for arm, items in labels.items()))
    return LabelFigures(
        study=plan.study.name,
        judge=judge,
        baseline=plan.baseline.name,
        export=hashlib.sha256(f"{judge.metric} {text}".encode()).hexdigest()[:16],
        trials={
            trials[arm, seed].name: trials[arm, seed].fingerprint
            for arm, items in sorted(labels.items())
            for seed in sorted({seed for seeds in items.values() for seed in seeds})
        },
        unjudged=unjudged,
        arms=tuple(
            LabelledArm(
                arm=name,
                agreement=compute_agreement(arm.pairs),
                figures=correct_mean(arm.values, arm.labels, arm.judged, paired=False),
                difference=None
                if baseline is None or arm is baseline
                else _difference_from_baseline(arm, baseline),
            )
            for name, arm in arms.items()
        ),
    )


def labels_to_json(figures: LabelFigures) -> dict[str, Any]:
    """Return figures as plain data, in the unit in which the metric is shown."""
    info = figures.judge.info
    is_share = info.unit in ("percent", "fraction")
    scale = 100.0 if is_share else shown_unit_scale(info)
    return {
        "kind": LABELS_KIND,
        "export": figures.export,
        "study": figures.study,
        "benchmark": figures.judge.benchmark,
        "metric": figures.judge.metric,
        "unit": to_shown_unit(info).unit,
        "goal": info.goal,
        "baseline": figures.baseline,
        "trials": dict(figures.trials),
        "unjudged": figures.unjudged,
        "arms": [
            {
                "arm": arm.arm,
                "agreement": agreement_to_json(arm.agreement),
                **figures_to_json(arm.figures, scale, (0, 1) if is_share else None),
                "difference": None
                if arm.difference is None
                else figures_to_json(arm.difference, scale, (-1, 1) if is_share else None),
            }
            for arm in figures.arms
        ],
    }


@dataclass(frozen=True, kw_only=True)
class _ArmValues:
    """An arm's values by item."""

    values: Mapping[str, float]  # the judge's, the mean over seeds
    labels: Mapping[str, float]  # people's, the mean over labelled answers
    judged: Mapping[str, float]  # the judge's of the same answers
    pairs: Sequence[tuple[float, float]]  # of each label: people's and the judge's
    unjudged: int


def _collect_arm_values(
    arm: Arm, judge: JudgeValues, labels: Mapping[str, Mapping[int, Sequence[float]]]
) -> _ArmValues:
    values = {trial.seed: judge.values.get(trial.fingerprint, {}) for trial in arm.trials}
    item_values: dict[str, list[float]] = {}
    for seed_values in values.values():
        for item, value in seed_values.items():
            item_values.setdefault(item, []).append(value)
    people_labels: dict[str, float] = {}
    judged: dict[str, float] = {}
    pairs: list[tuple[float, float]] = []
    unjudged = 0
    for item, seeds in labels.items():
        judged_seeds = {
            seed: seed_labels for seed, seed_labels in seeds.items() if item in values[seed]
        }
        unjudged += sum(
            len(seed_labels) for seed, seed_labels in seeds.items() if seed not in judged_seeds
        )
        if judged_seeds:
            people_labels[item] = fmean(fmean(seed_labels) for seed_labels in judged_seeds.values())
            judged[item] = fmean(values[seed][item] for seed in judged_seeds)
            pairs += [
                (label, values[seed][item]) for seed in judged_seeds for label in judged_seeds[seed]
            ]
    return _ArmValues(
        values={item: fmean(all_values) for item, all_values in item_values.items()},
        labels=people_labels,
        judged=judged,
        pairs=pairs,
        unjudged=unjudged,
    )


def _difference_from_baseline(
    arm: _ArmValues, baseline: _ArmValues
) -> PredictionPoweredEstimate | None:
    """Return the arm's figure less the baseline's, over the items that both have."""
    shared = arm.labels.keys() & baseline.labels.keys()
    if not shared:
        return None
    return correct_mean(
        {
            item: arm.values[item] - baseline.values[item]
            for item in arm.values.keys() & baseline.values.keys()
        },
        {item: arm.labels[item] - baseline.labels[item] for item in shared},
        {item: arm.judged[item] - baseline.judged[item] for item in shared},
        paired=True,
    )


def _iter_trials(arms: Sequence[Arm]) -> Iterator[Trial]:
    return (trial for arm in arms for trial in arm.trials if trial.blocked is None)


def _answer_id(trial: Trial, item: str) -> str:
    return hashlib.sha256(f"{trial.fingerprint} {item}".encode()).hexdigest()[:16]


def _read_label_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file, each with its place."""
    if file.suffix.lower() != ".csv":
        yield from ((row.location, row.values) for row in read_rows(file))
        return
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.DictReader(stream), start=2):
                yield f"{file} row {number}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV ({error})") from None


def _parse_label(raw: Any, judge: JudgeValues, location: str) -> float:
    is_share = judge.info.unit in ("percent", "fraction")
    expected = "a number from 0 to 1" if is_share else "a number"
    try:
        label = float(raw)
    except (TypeError, ValueError, OverflowError):
        label = math.nan
    if not math.isfinite(label) or (is_share and not 0 <= label <= 1):
        raise UserError(f"{location}: label {str(raw)[:40]!r}: {judge.metric} takes {expected}")
    return label


def _find_answer(
    row: Mapping[str, Any],
    answers_by_id: Mapping[str, tuple[Trial, str]],
    names: Mapping[str, Trial],
    location: str,
) -> tuple[Trial, str]:
    """Return the trial and item of the answer that a row labels."""
    if row.get("id"):
        if str(row["id"]) not in answers_by_id:
            raise UserError(
                f"{location}: no answer of this study has the id {str(row['id'])[:40]!r}: it was "
                "drawn from another study, or the study has changed since"
            )
        return answers_by_id[str(row["id"])]
    missing_columns = [key for key in ("item", "arm", "seed") if row.get(key) in (None, "")]
    if missing_columns:
        raise UserError(f"{location}: there is no id, and no {missing_columns[0]}")
    name = f"{row['arm']}, seed {row['seed']}"
    if name not in names:
        raise UserError(f"{location}: the study has no trial '{name}'")
    return names[name], str(row["item"])
