"""Calibrate: measure some steps, answers and samples of each kind of work.

It runs in separate processes, as many at once as the study will run, in a temporary folder. The
results are saved in `cache/cost/` of the work directory, by a hash of all that they depend on.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from statistics import fmean
from typing import Any, cast

from chip_core.config.benchmark import DataPaths
from chip_core.config.identity import fingerprint
from chip_core.config.trial import TrialConfig
from chip_core.utils.files import read_checksummed, write_checksummed, write_json
from chip_core.utils.machine import cpu_name, gpu_count
from orchestrator.cost.calibration.measurements import Measurement, list_measurements
from orchestrator.cost.estimate import RAY_KIND, ExecutorKind
from orchestrator.cost.rates import Quantity, RateSource, Seconds, Size
from orchestrator.cost.workload import Workload

MessageCallback = Callable[[str], None]

#: Quantities measured of Ray, and their kind.
_RAY_QUANTITIES = (("session", RAY_KIND), ("dispatch", RAY_KIND))


def calibration_folder(workdir: Path) -> Path:
    """Return the folder of saved calibrations."""
    return workdir / "cache" / "cost"


def load_calibration(
    work: Workload, workdir: Path, at_once: int, executor: ExecutorKind = "ray"
) -> RateSource | None:
    """Return the rates of earlier calibrations for this work; None without any."""
    results: list[tuple[tuple[tuple[str, str], ...], Mapping[str, Any]]] = []
    if executor == "ray" and (result := _read_result(_ray_file(workdir))) is not None:
        results.append((_RAY_QUANTITIES, result))
    for measurement in list_measurements(work):
        if (result := _read_result(_result_file(workdir, measurement, at_once))) is not None:
            results.append((measurement.kinds, result))
    return _to_rate_source(results) if results else None


def calibrate(
    work: Workload,
    workdir: Path,
    data_paths: DataPaths,
    *,
    at_once: int,
    notify: MessageCallback,
    executor: ExecutorKind = "inline",
) -> dict[str, str]:
    """Measure what has no saved result, and return what could not be measured, and why.

    Args:
        work: what is left of a study.
        workdir: the work directory; nothing but the results is left in it.
        data_paths: where benchmarks' data are.
        at_once: number of trials that will run at once; as many processes share the machine here.
        notify: called with what is being measured.
        executor: how the study is run; with Ray, its overhead is measured, too.
    """
    all_measurements = list_measurements(work)
    pending = [
        measurement
        for measurement in all_measurements
        if _read_result(_result_file(workdir, measurement, at_once)) is None
    ]
    read_passes = {
        name
        for measurement in pending
        if not measurement.builds_passes
        for name in measurement.passes
    }
    pending += [
        measurement
        for measurement in all_measurements
        if measurement.builds_passes
        and measurement not in pending
        and read_passes & set(measurement.passes)
    ]
    problems: dict[str, str] = {}
    run_count = min(at_once, len(work.trials))
    with tempfile.TemporaryDirectory(prefix="chip-cost-") as temp_folder:
        if executor == "ray" and work.trials and _read_result(_ray_file(workdir)) is None:
            notify("calibrating: Ray")
            folder = Path(temp_folder) / "ray"
            folder.mkdir()
            module = "orchestrator.cost.calibration.measure_ray"
            result = _run_command([sys.executable, "-m", module, str(folder)], folder)
            if "error" in result:
                problems["Ray"] = result["error"]
            else:
                write_checksummed(_ray_file(workdir), result)
        for is_build in (True, False):  # passes first, since trainings read them
            stage_measurements = [
                measurement for measurement in pending if measurement.builds_passes == is_build
            ]
            # Steps are slower in parallel, so all slots are filled, with repeats if needed.
            run_total = max(len(stage_measurements), run_count)
            repeated = list(itertools.islice(itertools.cycle(stage_measurements), run_total))
            for measurement in stage_measurements:
                notify(f"calibrating: {measurement.name}")
            results = _run_measurements(repeated, Path(temp_folder), data_paths, run_count)
            for measurement in stage_measurements:
                measurement_results = [
                    result for measured, result in results if measured is measurement
                ]
                error = next(
                    (result["error"] for result in measurement_results if "error" in result), None
                )
                if error is not None:
                    problems[measurement.name] = error
                    continue
                write_checksummed(
                    _result_file(workdir, measurement, at_once), _merge_results(measurement_results)
                )
    return problems


def _read_result(file: Path) -> Mapping[str, Any] | None:
    """Return a saved measurement; None if it is missing or damaged, so that it is repeated."""
    try:
        result = read_checksummed(file)
        for wall, cpu in result["seconds"].values():
            float(wall) + float(cpu)
        for size in result["sizes"].values():
            int(size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result


def _ray_file(workdir: Path) -> Path:
    # Measured again if the executor starts other processes for a trial.
    inputs = {"machine": cpu_name(), "ray": metadata.version("ray"), "processes": 2}
    return calibration_folder(workdir) / f"ray-{fingerprint(inputs)[:32]}.json"


def _result_file(workdir: Path, measurement: Measurement, at_once: int) -> Path:
    return calibration_folder(workdir) / f"{measurement.identity(at_once)[:32]}.json"


def _run_measurements(
    repeated: Sequence[Measurement], temp_folder: Path, data_paths: DataPaths, at_once: int
) -> list[tuple[Measurement, dict[str, Any]]]:
    """Run measurements, `at_once` in parallel. Each slot has its own GPUs."""
    free: SimpleQueue[int] = SimpleQueue()
    for slot in range(at_once):
        free.put(slot)

    def run_one(number: int) -> tuple[Measurement, dict[str, Any]]:
        slot = free.get()
        try:
            return repeated[number], _run_measurement(
                repeated[number],
                temp_folder,
                number,
                data_paths,
                slot,
                is_repeat=number > repeated.index(repeated[number]),
            )
        finally:
            free.put(slot)

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(run_one, range(len(repeated))))


def _run_measurement(
    measurement: Measurement,
    temp_folder: Path,
    number: int,
    data_paths: DataPaths,
    slot: int,
    *,
    is_repeat: bool,
) -> dict[str, Any]:
    # Two measurements of the same passes must not find each other's.
    cache = temp_folder / (
        f"stores-{number}" if is_repeat and measurement.builds_passes else "stores"
    )
    spec = {
        "config": measurement.config.model_dump(mode="json"),
        "passes": [list(cache_id) for cache_id in measurement.passes],
        "make": measurement.builds_passes,
        "cache": str(cache),
        "untrained": measurement.untrained,
        "places": {
            name: path and str(path)
            for name, path in asdict(data_paths).items()
            if name != "judge_cache"
        },
    }
    folder = temp_folder / f"{'pass' if measurement.builds_passes else 'trial'}-{number}"
    write_json(folder / "spec.json", spec)
    module = "orchestrator.cost.calibration.measure"
    command = [sys.executable, "-m", module, str(folder / "spec.json")]
    return _run_command(command, folder, env=_environment(measurement.config, slot))


def _run_command(
    command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a measurement, and return its result or error."""
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    try:
        result: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    except OSError:
        error_lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"error": error_lines[-1]}
    return result


def _environment(config: TrialConfig, slot: int) -> dict[str, str]:
    """Return the environment of a trial's process, with only the GPUs of its slot."""
    engine = config.engine
    settings = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": str(engine.cpus_per_worker),
        **os.environ,
    }
    share = engine.gpus_per_worker
    if share:
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = list(map(str, range(gpu_count()))) if allowed is None else allowed.split(",")
        first = math.floor(slot * share)
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + math.ceil(share)])
    elif engine.device != "cuda":
        settings["CUDA_VISIBLE_DEVICES"] = ""  # as Ray does for a worker without a GPU
    return settings


def _merge_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean times and the largest sizes of repeats."""
    first = results[0]
    return {
        "seconds": {
            name: [fmean(result["seconds"][name][index] for result in results) for index in (0, 1)]
            for name in first["seconds"]
            if all(name in result["seconds"] for result in results)
        },
        "sizes": {
            name: max(result["sizes"][name] for result in results)
            for name in first["sizes"]
            if all(name in result["sizes"] for result in results)
        },
    }


def _to_rate_source(
    results: Sequence[tuple[tuple[tuple[str, str], ...], Mapping[str, Any]]],
) -> RateSource:
    """Return the rates by kind. A kind that was measured more than once gets the mean."""
    rates: dict[tuple[Quantity, str], list[Seconds]] = {}
    sizes: dict[tuple[Size, str], int] = {}
    for kinds, result in results:
        seconds, result_sizes = result["seconds"], result["sizes"]
        for name, kind in kinds:
            if name in seconds:
                wall, cpu = seconds[name]
                key = cast(Quantity, name.partition(" ")[0]), kind  # "answer report/shapes"
                rates.setdefault(key, []).append(Seconds(wall=wall, cpu=cpu))
            elif name in result_sizes:
                size = cast(Size, name), kind
                sizes[size] = max(result_sizes[name], sizes.get(size, 0))
    return RateSource(
        name="a calibration on this machine",
        rates={
            key: Seconds(
                wall=fmean(time.wall for time in times), cpu=fmean(time.cpu for time in times)
            )
            for key, times in rates.items()
        },
        sizes=sizes,
    )
