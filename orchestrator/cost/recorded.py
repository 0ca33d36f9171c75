"""Read rates from earlier trials on a machine like this one."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from chip_core.config.trial import TrialConfig
from chip_core.evaluation.readiness import list_sides
from chip_core.results import CONFIG, MODEL, SAMPLED
from orchestrator.cost.kinds import (
    answer_kind,
    row_kind,
    sampling_kind,
    score_kind,
    start_kind,
    training_kind,
)
from orchestrator.cost.rates import NO_TIME, Quantity, RateSource, Seconds, Size
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger, TrialRecord
from orchestrator.storage.binding import find_storage

_Rate = tuple[tuple[Quantity, str], Seconds]


def recorded_rates(
    plan: Plan, ledger: Ledger, storage: Path, machines: Collection[str] | None
) -> RateSource | None:
    """Return the rates of earlier trials; None without any.

    Args:
        plan: whose trials' configurations are known; others' are read from their folders.
        ledger: what has been run.
        storage: where attempts lie.
        machines: the devices whose times count; None: any, as none of them is here.
    """
    planned_configs = {trial.fingerprint: trial.config for trial in plan.trials}
    times_by_key: dict[tuple[Quantity, str], list[Seconds]] = {}
    sizes: dict[tuple[Size, str], int] = {}
    trials, machine_names = 0, set[str]()
    for fingerprint, record in ledger.items():
        if not record.finished or not record.machine:
            continue
        if machines is not None and record.machine not in machines:
            continue
        config = planned_configs.get(fingerprint) or _read_config(record, storage)
        if config is None:
            continue
        rates = list(_trial_rates(config, record))
        if rates:
            trials += 1
            machine_names.add(record.machine)
        for key, seconds in rates:
            times_by_key.setdefault(key, []).append(seconds)
        saved = _model_bytes(record, storage)
        if record.data and config.data.limit is None and not config.pairs.rounds:
            rows = record.data.get("pairs", 0) + record.data.get("skipped", 0)
            sizes["rows", row_kind(config)] = rows
        if saved is not None:
            sizes["saved", _training_kind(config, record)] = saved
    if not times_by_key:
        return None
    return RateSource(
        name=f"{trials} earlier trial{'' if trials == 1 else 's'} on "
        f"{', '.join(sorted(machine_names))}",
        rates={
            # If a process runs several trials, only the first one makes the imports.
            key: max(times, key=lambda time: time.wall)
            if key[0] == "imports"
            else _median_time(times)
            for key, times in times_by_key.items()
        },
        sizes=sizes,
    )


def _trial_rates(config: TrialConfig, record: TrialRecord) -> Iterator[_Rate]:
    """Yield the rates of one trial, without phases that were interrupted or resumed."""
    start = start_kind(config)
    imports, model = _phase_time(record, "imports"), _phase_time(record, "model")
    if imports is not None and model is not None:
        yield ("imports", start), imports
        yield ("model", start), model
    resumed = any("resumed" in note for note in record.notes)
    train, first_step = _phase_time(record, "train"), record.seconds.get("first_step")
    trainings = config.pairs.rounds or 1
    has_steps = record.steps > trainings and train is not None and train.wall > 0
    if train is not None and first_step is not None and has_steps and not resumed:
        kind = _training_kind(config, record)
        wall = max(train.wall - trainings * first_step, 0.0) / (record.steps - trainings)
        step = train * (wall / train.wall)
        yield ("step", kind), step
        # What is left beside the steps: the first one's further time.
        setup_share = max(1 - record.steps * wall / train.wall, 0.0)
        yield ("setup", kind), train * (setup_share / trainings)
        rows = record.data.get("pairs", 0) + record.data.get("skipped", 0)
        checked = _phase_time(record, "check data")
        if rows and checked is not None:
            yield ("row", row_kind(config)), checked * (1 / rows)
    sampled, sampling = record.data.get("sampled", 0), _phase_time(record, SAMPLED)
    if sampled and sampling is not None:
        yield ("answer", sampling_kind(config)), sampling * (1 / sampled)
    for side, settings in list_sides(config.benchmarks):
        key = f"{side}/{settings.name}"
        answered = _phase_time(record, f"answer {key}")
        scored = _phase_time(record, f"score {key}")
        if answered is None:  # an earlier version noted one time for both
            answered, scored = scored, NO_TIME
        count = _answer_count(record, key)
        if answered is not None and scored is not None and count:
            workers = 1 if train is None else config.engine.workers_per_trial
            yield ("answer", answer_kind(config, settings)), answered * (workers / count)
            yield ("score", score_kind(settings)), scored * (1 / count)


def _phase_time(record: TrialRecord, phase: str) -> Seconds | None:
    if phase not in record.seconds or phase not in record.cpu:
        return None
    return Seconds(wall=record.seconds[phase], cpu=record.cpu[phase])


def _answer_count(record: TrialRecord, key: str) -> int:
    """Return how many answers a benchmark's time was for; 0 where some were taken over."""
    side, _, name = key.partition("/")
    file = f"{side}-{re.sub(r'[^A-Za-z0-9_.-]', '.', name)}"  # as the evaluation names it
    for scored in record.evaluations.values():
        evaluation = scored.evaluation
        if Path(evaluation.scores).stem == file and "taken_over" not in evaluation.metadata:
            return evaluation.items
    return 0


def _training_kind(config: TrialConfig, record: TrialRecord) -> str:
    features = record.engine.get("image_features") == "stored"
    return training_kind(config, record.engine.get("reference", "live"), features=features)


def _read_config(record: TrialRecord, storage: Path) -> TrialConfig | None:
    """Return a trial's configuration as its folder has it; None where it is gone."""
    folder = record.model
    if folder is None:
        folder = next((scored.folder for scored in record.evaluations.values()), None)
    if folder is None:
        return None
    try:
        raw = json.loads((storage / folder / CONFIG).read_text(encoding="utf-8"))
        return TrialConfig.model_validate(raw)
    except (OSError, ValueError, ValidationError):
        return None


def _model_bytes(record: TrialRecord, storage: Path) -> int | None:
    """Return the size of a trained model's folder."""
    if record.model is None or not (storage / record.model / MODEL).is_dir():
        return None
    remote = find_storage(storage)
    if remote is not None:
        return sum(remote.sizes(f"{record.model}/{MODEL}").values())
    files = (storage / record.model / MODEL).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _median_time(times: list[Seconds]) -> Seconds:
    """Return the median of the nonzero times. Versions without times recorded zero for all."""
    known = [time for time in times if time != NO_TIME] or times
    return Seconds(wall=median(time.wall for time in known), cpu=median(time.cpu for time in known))
