"""List the measurements of a calibration, one per kind of work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from chip_core.config.identity import fingerprint
from chip_core.config.trial import BEHAVIOUR, BenchmarksConfig, PickConfig, TrialConfig
from chip_core.evaluation.items import find_benchmark
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.reference_cache.spec import CacheSpec
from chip_core.results import SAMPLED
from orchestrator.cost.kinds import sampling_kind, score_kind
from orchestrator.cost.machines import machine_of
from orchestrator.cost.workload import CacheBuildWork, TrialWork, Workload

#: Optimizer steps of a calibration's training; the first one is not counted.
STEPS = 6
#: Prompts of a calibration's round per pair that is trained on, since not each gives a pair.
PROMPTS = 4
#: Largest number of batches of answers.
BATCHES = 2
#: Raised when what is measured changes.
_FORMAT = 1

#: A pass independent of its data: kind, epoch, precision of hidden states.
Named = tuple[str, int | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One thing to measure."""

    name: str  # for people
    config: TrialConfig  # cut down to what is measured
    make: bool  # passes, and not a trial
    passes: tuple[Named, ...]  # that are made, or read
    untrained: bool
    kinds: tuple[tuple[str, str], ...]  # name of what is found -> the kind it is of

    def identity(self, at_once: int) -> str:
        """Return a hash of all that the result depends on."""
        return fingerprint(
            {
                "format": _FORMAT,
                "behaviour": BEHAVIOUR,
                "machine": machine_of(self.config),
                "at_once": at_once,
                "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
                "config": self.config.model_dump(mode="json"),
                "passes": [list(one) for one in self.passes],
                "make": self.make,
                "untrained": self.untrained,
                "kinds": dict(self.kinds),
            }
        )


def measurements(work: Workload) -> list[Measurement]:
    """Return the measurements for a workload, one per kind, passes first.

    Passes that a measured training reads and that the study does not build are built, too.
    """
    trials = list(_of_trials(work))
    groups = [_of_pass(group) for group in work.passes]
    made = {one for group in groups for one in group.passes}
    for each, one in trials:
        lacking = tuple(name for name in one.passes if name not in made)
        if lacking:
            groups.append(_lacking(each, lacking))
            made.update(lacking)
    return [*groups, *(one for _, one in trials)]


def _of_trials(work: Workload) -> Iterator[tuple[TrialWork, Measurement]]:
    seen: set[str] = set()
    asked: set[str] = set()
    # Trainings first, since their answers are more like those of trained models.
    for each in sorted(work.trials, key=lambda each: each.training is None):
        kind = each.training or each.start
        samples = each.training is not None and each.config.pairs.rounds > 0
        kind += sampling_kind(each.config) if samples else ""
        answers = {
            key: one.kind
            for key, one in each.asked.items()
            if one.kind not in asked and one.questions and _may_be_asked(one.settings)
        }
        if each.answered or each.processes > 1 or (kind in seen and not answers):
            continue
        if each.training is None and each.start in seen and not answers:
            continue
        seen |= {kind, each.start}
        asked |= set(answers.values())
        kinds = {"imports": each.start, "model": each.start}
        if each.training is not None:
            kinds |= {"row": each.row, "setup": each.training, "step": each.training}
            if samples:
                kinds[f"answer {SAMPLED}"] = sampling_kind(each.config)
            kinds |= {"memory": each.training, "saved": each.training, "rows": each.row}
        kinds |= {f"answer {key}": kind for key, kind in answers.items()}
        kinds |= {f"score {key}": score_kind(each.asked[key].settings) for key in answers}
        one = Measurement(
            name=each.trial.arm,
            config=_shortened(each.config, set(answers)),
            make=False,
            passes=tuple(map(_named, each.caches)) if each.training is not None else (),
            untrained=each.training is None,
            kinds=tuple(sorted(kinds.items())),
        )
        yield each, one


def _may_be_asked(settings: Any) -> bool:
    """Return whether answers cost nothing but time, that is, no judge is paid."""
    return settings.judge is None and not isinstance(
        find_benchmark(settings.name), ExternalBenchmark
    )


def _of_pass(work: CacheBuildWork) -> Measurement:
    return Measurement(
        name=f"reference pass {work.name}",
        config=_shortened(work.config, set()),
        make=True,
        passes=tuple(_named(planned.spec) for planned in work.group),
        untrained=True,
        kinds=(("sample", work.kind),),
    )


def _lacking(each: TrialWork, passes: tuple[Named, ...]) -> Measurement:
    return Measurement(
        name=f"reference passes that {each.trial.arm} reads",
        config=_shortened(each.config, set()),
        make=True,
        passes=passes,
        untrained=True,
        kinds=(),
    )


def _named(one: CacheSpec) -> Named:
    return one.kind, one.epoch, one.hidden


def _shortened(config: TrialConfig, answers: set[str]) -> TrialConfig:
    """Return a configuration cut down to some steps and some answers."""

    def cut(side: str) -> tuple[Any, ...]:
        most = BATCHES * config.engine.generation_batch
        return tuple(
            settings.model_copy(update={"limit": min(settings.limit or most, most)})
            for settings in getattr(config.benchmarks, side)
            if f"{side}/{settings.name}" in answers
        )

    pairs = STEPS * config.training.batch_size * (PROMPTS if config.pairs.rounds else 1)
    rounds = {"rounds": min(config.pairs.rounds, 1), "prompts": None}
    return config.model_copy(
        update={
            "seed": 0,
            "pairs": config.pairs.model_copy(update=rounds),
            "data": config.data.model_copy(
                update={"limit": min(config.data.limit or pairs, pairs)}
            ),
            # What is answered on the way is counted by how often a whole training is scored.
            "training": config.training.model_copy(
                update={"max_steps": STEPS, "score_at": (), "pick": PickConfig()}
            ),
            "engine": config.engine.model_copy(update={"checkpoint_every": None}),
            "benchmarks": BenchmarksConfig(select=cut("select"), report=cut("report")),
        }
    )
