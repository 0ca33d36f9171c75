"""Measure one kind of work in a separate process.

    python -m orchestrator.cost.calibration.measure SPEC

It reads what to measure from a JSON file and leaves seconds and sizes beside it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.data import identity as data_identity
from chip_core.data.files import is_hub_name
from chip_core.data.source import open_source
from chip_core.models import loading
from chip_core.reference_cache.spec import (
    AvailableCaches,
    CacheSpec,
    group_specs,
    list_cache_specs,
    with_hidden,
)
from chip_core.results import MODEL, SAMPLED, Progress
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import write_json
from chip_core.utils.machine import cpu_seconds
from orchestrator.cost.calibration.measurements import CacheId
from orchestrator.cost.kinds import LIVE, reference_kind


@dataclass
class _PhaseTimes:
    """Wall and CPU times of the progress reports of a phase."""

    phase: str
    points: list[tuple[int, float, float]] = field(default_factory=list)

    def __call__(self, progress: Progress) -> None:
        """Record a report of the phase."""
        if progress.phase == self.phase and progress.done:
            self.points.append((progress.done, time.perf_counter(), cpu_seconds()))

    @property
    def per_unit(self) -> list[float] | None:
        """Seconds per unit, [wall, cpu], after the first report; None with fewer than two."""
        if len(self.points) < 2:
            return None
        (first_done, wall, cpu), (done, last_wall, last_cpu) = self.points[0], self.points[-1]
        return [(last_wall - wall) / (done - first_done), (last_cpu - cpu) / (done - first_done)]


def find_cache_specs(config: TrialConfig, cache_ids: Sequence[CacheId]) -> tuple[CacheSpec, ...]:
    """Return the passes with these names on a configuration's own data.

    An epoch that a calibration does not reach is left out.
    """
    model, data = loading.identity(config.model), data_identity(config.data)
    specs = []
    for spec in list_cache_specs(config, model, data):
        for kind, epoch, hidden in cache_ids:
            if (spec.kind, spec.epoch) != (kind, epoch) or epoch not in (None, 0):
                continue
            if spec.hidden is None and hidden is not None:
                assert hidden in ("fp32", "bf16")
                specs.append(with_hidden(spec, "bf16" if hidden == "bf16" else "fp32"))
            elif spec.hidden == hidden:
                specs.append(spec)
    return tuple(specs)


def measure(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the measurements: `seconds` by quantity as [wall, cpu], `sizes` in bytes.

    Args:
        spec: `config`; `passes` that are there or, where `make` holds, are made; `cache`, where
            they lie; `untrained`; `places`.
        folder: for the trial's files.
    """
    began, began_cpu = time.perf_counter(), cpu_seconds()
    config = TrialConfig.model_validate(spec["config"])
    cache = Path(spec["cache"])
    cache_ids = [(kind, epoch, hidden) for kind, epoch, hidden in spec["passes"]]
    if spec["make"]:
        return _measure_build(config, cache_ids, cache)
    from chip_core.trial import run_trial

    passes = find_cache_specs(config, cache_ids)
    caches = AvailableCaches(cache=cache, passes=passes) if passes else None
    steps = _PhaseTimes("train")
    result = run_trial(
        config,
        folder=folder,
        report=steps,
        untrained=spec["untrained"],
        began=began,
        began_cpu=began_cpu,
        data_paths=DataPaths(
            **{name: path and Path(path) for name, path in spec["places"].items()}
        ),
        caches=caches,
    )
    reference = result.engine.get("reference", LIVE)
    if not spec["untrained"] and reference != reference_kind(config, passes):
        return {"error": f"its reference was {reference}: {'; '.join(result.notes)}"}
    times = {name: [result.seconds[name], result.cpu[name]] for name in result.cpu}
    seconds: dict[str, Any] = {"imports": times["imports"], "model": times["model"]}
    step = steps.per_unit
    if step is not None:
        rows = result.data["pairs"] + result.data["skipped"]
        if "check data" in times:
            seconds["row"] = [value / rows for value in times["check data"]]
        seconds["step"] = step
        seconds["setup"] = [
            max(total - result.steps * step_time, 0.0)
            for total, step_time in zip(times["train"], step, strict=True)
        ]
    if sampled := result.data.get("sampled"):
        seconds[f"answer {SAMPLED}"] = [value / sampled for value in times[SAMPLED]]
    for key, evaluation in result.evaluations.items():
        for phase in (f"answer {key}", f"score {key}"):
            seconds[phase] = [value / evaluation.items for value in times[phase]]
    sizes = {"memory": _peak_memory(result.machine)}
    if (folder / MODEL).is_dir():
        files = (folder / MODEL).rglob("*")
        sizes["saved"] = sum(file.stat().st_size for file in files if file.is_file())
    if not spec["untrained"] and is_hub_name(config.data.source):
        sizes["rows"] = len(open_source(config.data.model_copy(update={"limit": None})))
    return {"seconds": seconds, "sizes": sizes}


def _measure_build(
    config: TrialConfig, cache_ids: Sequence[CacheId], cache: Path
) -> dict[str, Any]:
    """Build a group of passes, and return the seconds per sample."""
    from chip_core.reference_cache.build import PHASE, build_shard
    from chip_core.reference_cache.finish import finish_cache
    from chip_core.utils.seeding import seed_process

    seed_process(config.seed, config.engine.threads)
    samples = _PhaseTimes(PHASE)
    passes = find_cache_specs(config, cache_ids)
    for group in group_specs(passes):
        rows = build_shard(group, config, cache=cache, report=samples)
        for cache_spec in group:
            finish_cache(cache_spec, cache=cache, rows=rows, seconds=0.0)
    per_sample = samples.per_unit
    return {"seconds": {} if per_sample is None else {"sample": per_sample}, "sizes": {}}


def _peak_memory(machine: str) -> int:
    """Return the peak memory of this process on its device, in bytes."""
    import torch

    if torch.cuda.is_available() and machine == torch.cuda.get_device_name():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str]) -> int:
    """Measure what a specification file describes, and write `found.json` to its folder."""
    file = Path(arguments[0])
    try:
        result = measure(json.loads(file.read_text(encoding="utf-8")), file.parent / "trial")
    except (TrialError, UserError) as error:
        result = {"error": str(error).splitlines()[0]}
    except Exception as error:  # of a model, data or a user's own code
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    write_json(file.parent / "found.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
