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
from orchestrator.cost.machines import trial_machine
from orchestrator.cost.workload import TrialWork, Workload

#: Optimizer steps of a calibration's training; the first one is not counted.
STEPS = 6
#: Prompts of a calibration's round per pair that is trained on, since not each gives a pair.
PROMPTS = 4
#: Largest number of batches of answers.
BATCHES = 2
#: Raised when what is measured changes.
_FORMAT = 1

#: A pass independent of its data: kind, epoch, precision of hidden states.
CacheId = tuple[str, int | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One thing to measure."""

    name: str  # for people
    config: TrialConfig  # cut down to what is measured
    builds_passes: bool  # passes, and not a trial
    passes: tuple[CacheId, ...]  # that are made, or read
    untrained: bool
    kinds: tuple[tuple[str, str], ...]  # name of what is found -> the kind it is of

    def identity(self, at_once: int) -> str:
        """Return a hash of all that the result depends on."""
        return fingerprint(
            {
                "format": _FORMAT,
                "behaviour": BEHAVIOUR,
                "machine": trial_machine(self.config),
                "at_once": at_once,
                "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
                "config": self.config.model_dump(mode="json"),
                "passes": [list(cache_id) for cache_id in self.passes],
                "make": self.builds_passes,
                "untrained": self.untrained,
                "kinds": dict(self.kinds),
            }
        )


def list_measurements(work: Workload) -> list[Measurement]:
    """Return the measurements for a workload, one per kind, passes first.

    Passes that a measured training reads and that the study does not build are built, too.
    """
    trials = list(_trial_measurements(work))
    groups = [
        _pass_measurement(
            f"reference pass {group.name}",
            group.config,
            tuple(_cache_id(planned.spec) for planned in group.group),
            kinds=(("sample", group.kind),),
        )
        for group in work.passes
    ]
    built = {measurement for group in groups for measurement in group.passes}
    for trial_work, measurement in trials:
        missing = tuple(name for name in measurement.passes if name not in built)
        if missing:
            name = f"reference passes that {trial_work.trial.arm} reads"
            groups.append(_pass_measurement(name, trial_work.config, missing))
            built.update(missing)
    return [*groups, *(measurement for _, measurement in trials)]


def _trial_measurements(work: Workload) -> Iterator[tuple[TrialWork, Measurement]]:
    seen: set[str] = set()
    answered_kinds: set[str] = set()
    # Trainings first, since their answers are more like those of trained models.
    for trial_work in sorted(work.trials, key=lambda trial_work: trial_work.training is None):
        kind = trial_work.training or trial_work.start
        samples = trial_work.training is not None and trial_work.config.pairs.rounds > 0
        kind += sampling_kind(trial_work.config) if samples else ""
        answers = {
            key: measurement.kind
            for key, measurement in trial_work.questions.items()
            if measurement.kind not in answered_kinds
            and measurement.questions
            and _is_free(measurement.settings)
        }
        if trial_work.answered or trial_work.processes > 1 or (kind in seen and not answers):
            continue
        if trial_work.training is None and trial_work.start in seen and not answers:
            continue
        seen |= {kind, trial_work.start}
        answered_kinds |= set(answers.values())
        kinds = {"imports": trial_work.start, "model": trial_work.start}
        if trial_work.training is not None:
            kinds |= {
                "row": trial_work.row,
                "setup": trial_work.training,
                "step": trial_work.training,
            }
            if samples:
                kinds[f"answer {SAMPLED}"] = sampling_kind(trial_work.config)
            kinds |= {
                "memory": trial_work.training,
                "saved": trial_work.training,
                "rows": trial_work.row,
            }
        kinds |= {f"answer {key}": kind for key, kind in answers.items()}
        kinds |= {f"score {key}": score_kind(trial_work.questions[key].settings) for key in answers}
        measurement = Measurement(
            name=trial_work.trial.arm,
            config=_shorten_config(trial_work.config, set(answers)),
            builds_passes=False,
            passes=tuple(map(_cache_id, trial_work.caches))
            if trial_work.training is not None
            else (),
            untrained=trial_work.training is None,
            kinds=tuple(sorted(kinds.items())),
        )
        yield trial_work, measurement


def _is_free(settings: Any) -> bool:
    """Return whether answers cost nothing but time, that is, no judge is paid."""
    return settings.judge is None and not isinstance(
        find_benchmark(settings.name), ExternalBenchmark
    )


def _pass_measurement(
    name: str,
    config: TrialConfig,
    passes: tuple[CacheId, ...],
    kinds: tuple[tuple[str, str], ...] = (),
) -> Measurement:
    return Measurement(
        name=name,
        config=_shorten_config(config, set()),
        builds_passes=True,
        passes=passes,
        untrained=True,
        kinds=kinds,
    )


def _cache_id(spec: CacheSpec) -> CacheId:
    return spec.kind, spec.epoch, spec.hidden


def _shorten_config(config: TrialConfig, answers: set[str]) -> TrialConfig:
    """Return a configuration cut down to some steps and some answers."""

    def cut(side: str) -> tuple[Any, ...]:
        limit = BATCHES * config.engine.generation_batch
        return tuple(
            settings.model_copy(update={"limit": min(settings.limit or limit, limit)})
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
