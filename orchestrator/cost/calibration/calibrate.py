"""Calibrate: measure some steps, answers and samples of each kind of work.

It runs in separate processes, as many at once as the study will run, in a temporary folder. The
results are saved in `cache/cost/` of the work directory, by a hash of all that they depend on.
"""

from __future__ import annotations

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
from orchestrator.cost.calibration.measurements import Measurement, measurements
from orchestrator.cost.estimate import OF_RAY, Way
from orchestrator.cost.rates import Quantity, RateSource, Seconds, Size
from orchestrator.cost.workload import Workload

Say = Callable[[str], None]

#: Quantities measured of Ray, and their kind.
_RAY = (("session", OF_RAY), ("dispatch", OF_RAY))


def folder(workdir: Path) -> Path:
    """Return the folder of saved calibrations."""
    return workdir / "cache" / "cost"


def kept(work: Workload, workdir: Path, at_once: int, way: Way = "ray") -> RateSource | None:
    """Return the rates of earlier calibrations for this work; None without any."""
    found: list[tuple[tuple[tuple[str, str], ...], Mapping[str, Any]]] = []
    if way == "ray" and (result := _result(_ray_file(workdir))) is not None:
        found.append((_RAY, result))
    for one in measurements(work):
        if (result := _result(_file(workdir, one, at_once))) is not None:
            found.append((one.kinds, result))
    return _source(found) if found else None


def calibrate(
    work: Workload,
    workdir: Path,
    places: DataPaths,
    *,
    at_once: int,
    say: Say,
    way: Way = "inline",
) -> dict[str, str]:
    """Measure what has no saved result, and return what could not be measured, and why.

    Args:
        work: what is left of a study.
        workdir: the work directory; nothing but the results is left in it.
        places: where benchmarks' data are.
        at_once: number of trials that will run at once; as many processes share the machine here.
        say: called with what is being measured.
        way: how the study is run; with Ray, its overhead is measured, too.
    """
    every = measurements(work)
    wanted = [one for one in every if _result(_file(workdir, one, at_once)) is None]
    read = {name for one in wanted if not one.make for name in one.passes}
    wanted += [one for one in every if one.make and one not in wanted and read & set(one.passes)]
    problems: dict[str, str] = {}
    runs = min(at_once, len(work.trials))
    with tempfile.TemporaryDirectory(prefix="chip-cost-") as place:
        if way == "ray" and work.trials and _result(_ray_file(workdir)) is None:
            say("calibrating: Ray")
            found = _measure_ray(Path(place) / "ray")
            if "error" in found:
                problems["Ray"] = found["error"]
            else:
                write_checksummed(_ray_file(workdir), found)
        for stage in (True, False):  # passes first, since trainings read them
            these = [one for one in wanted if one.make == stage]
            # Steps are slower in parallel, so all slots are filled, with repeats if needed.
            filled = [these[n % len(these)] for n in range(max(len(these), runs))] if these else []
            for one in these:
                say(f"calibrating: {one.name}")
            results = _run(filled, Path(place), places, runs)
            for one in these:
                of_one = [found for which, found in results if which is one]
                failed = next((found["error"] for found in of_one if "error" in found), None)
                if failed is not None:
                    problems[one.name] = failed
                    continue
                write_checksummed(_file(workdir, one, at_once), _mean(of_one))
    return problems


def _result(file: Path) -> Mapping[str, Any] | None:
    """Return a saved measurement; None if it is missing or damaged, so that it is repeated."""
    try:
        found = read_checksummed(file)
        for wall, cpu in found["seconds"].values():
            float(wall) + float(cpu)
        for size in found["sizes"].values():
            int(size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found


def _ray_file(workdir: Path) -> Path:
    # Measured again if the executor starts other processes for a trial.
    decided_by = {"machine": cpu_name(), "ray": metadata.version("ray"), "processes": 2}
    return folder(workdir) / f"ray-{fingerprint(decided_by)[:32]}.json"


def _measure_ray(place: Path) -> dict[str, Any]:
    place.mkdir()
    return _ended(
        [sys.executable, "-m", "orchestrator.cost.calibration.measure_ray", str(place)], place
    )


def _file(workdir: Path, one: Measurement, at_once: int) -> Path:
    return folder(workdir) / f"{one.identity(at_once)[:32]}.json"


def _run(
    wanted: Sequence[Measurement], place: Path, places: DataPaths, at_once: int
) -> list[tuple[Measurement, dict[str, Any]]]:
    """Run measurements, `at_once` in parallel. Each slot has its own GPUs."""
    free: SimpleQueue[int] = SimpleQueue()
    for slot in range(at_once):
        free.put(slot)

    def one(number: int) -> tuple[Measurement, dict[str, Any]]:
        slot = free.get()
        try:
            return wanted[number], _measure(
                wanted[number],
                place,
                number,
                places,
                slot,
                again=number > wanted.index(wanted[number]),
            )
        finally:
            free.put(slot)

    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(one, range(len(wanted))))


def _measure(
    one: Measurement, place: Path, number: int, places: DataPaths, slot: int, *, again: bool
) -> dict[str, Any]:
    # Two measurements of the same passes must not find each other's.
    cache = place / (f"stores-{number}" if again and one.make else "stores")
    spec = {
        "config": one.config.model_dump(mode="json"),
        "passes": [list(each) for each in one.passes],
        "make": one.make,
        "cache": str(cache),
        "untrained": one.untrained,
        "places": {
            name: path and str(path)
            for name, path in asdict(places).items()
            if name != "judge_cache"
        },
    }
    own = place / f"{'pass' if one.make else 'trial'}-{number}"
    write_json(own / "spec.json", spec)
    command = [
        sys.executable,
        "-m",
        "orchestrator.cost.calibration.measure",
        str(own / "spec.json"),
    ]
    return _ended(command, own, env=_environment(one.config, slot))


def _ended(
    command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a measurement, and return its result or error."""
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    except OSError:
        said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return {"error": said[-1]}
    return found


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


def _mean(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean times and the largest sizes of repeats."""
    first = found[0]
    return {
        "seconds": {
            name: [fmean(each["seconds"][name][place] for each in found) for place in (0, 1)]
            for name in first["seconds"]
            if all(name in each["seconds"] for each in found)
        },
        "sizes": {
            name: max(each["sizes"][name] for each in found)
            for name in first["sizes"]
            if all(name in each["sizes"] for each in found)
        },
    }


def _source(found: Sequence[tuple[tuple[tuple[str, str], ...], Mapping[str, Any]]]) -> RateSource:
    """Return the rates by kind. A kind that was measured more than once gets the mean."""
    rates: dict[tuple[Quantity, str], list[Seconds]] = {}
    sizes: dict[tuple[Size, str], int] = {}
    for kinds, result in found:
        seconds, bytes_of = result["seconds"], result["sizes"]
        for name, kind in kinds:
            if name in seconds:
                wall, cpu = seconds[name]
                key = cast(Quantity, name.partition(" ")[0]), kind  # "answer report/shapes"
                rates.setdefault(key, []).append(Seconds(wall=wall, cpu=cpu))
            elif name in bytes_of:
                size = cast(Size, name), kind
                sizes[size] = max(bytes_of[name], sizes.get(size, 0))
    return RateSource(
        name="a calibration on this machine",
        rates={
            key: Seconds(wall=fmean(one.wall for one in all_), cpu=fmean(one.cpu for one in all_))
            for key, all_ in rates.items()
        },
        sizes=sizes,
    )
