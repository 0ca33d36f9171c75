"""Run a study on a cluster with the options of `run` that apply there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.common.output import print_json

#: Options whose value is one word, as they are there and here.
_FORWARDED_OPTIONS = (
    "benchmark_data", "judge_replies", "tracking_uri", "price_per_gpu_hour", "price_per_cpu_hour",
    "device_memory", "device", "gpus", "storage", "max_hours", "max_gpu_hours", "max_failures",
)  # fmt: skip


def run_remotely(
    cluster: Path,
    study: str,
    *,
    workdir: Path,
    executor: str,
    address: str | None,
    max_concurrent: int | None,
    as_json: bool,
    recipe: str | None,
    seeds: list[int] | None,
    overrides: Sequence[tuple[str, Any]],
    rate: Sequence[tuple[str, float]],
    budget: Sequence[tuple[str, float]],
    calibrate: bool,
    rates: Path | None,
    **forwarded: Any,
) -> int:
    """Run a study on a cluster. Paths of benchmarks, replies and MLflow are the cluster's.

    Returns:
        the study's exit code.
    """
    from orchestrator.cluster.session import run_on_cluster
    from orchestrator.study.model import StudyChanges
    from orchestrator.tracking.address import explain_error, validate_uri

    for option, is_given, reason in (
        ("--executor inline", executor == "inline", "a cluster has Ray"),
        ("--address", address is not None, "it is the cluster's own"),
        ("--calibrate", calibrate, "it would measure the head: give --rate"),
        ("--rates", rates is not None, "the file is not on the cluster: give --rate"),
    ):
        if is_given:
            raise click.UsageError(f"{option} cannot be used with --cluster: {reason}")
    values = {name: value for name, value in forwarded.items() if value is not None}
    try:
        validate_uri(values.get("tracking_uri", "http://there"))  # files and drivers are the head's
    except ValueError as error:
        raise explain_error(error, values["tracking_uri"]) from None
    return run_on_cluster(
        cluster,
        study,
        changes=StudyChanges(recipe=recipe, seeds=seeds, overrides=dict(overrides)),
        options=list(_format_options(seeds, overrides, rate, budget, values)),
        max_concurrent=max_concurrent,
        workdir=workdir,
        on_results=print_json if as_json else None,
    )


def _format_options(
    seeds: list[int] | None,
    overrides: Sequence[tuple[str, Any]],
    rate: Sequence[tuple[str, float]],
    budget: Sequence[tuple[str, float]],
    forwarded: dict[str, Any],
) -> Iterator[str]:
    if seeds:
        yield from ("--seeds", ",".join(map(str, seeds)))
    for key, value in overrides:
        yield from ("--set", f"{key}={json.dumps(value)}")
    for name, amounts in (("--rate", rate), ("--budget", budget)):
        for key, amount in amounts:
            yield from (name, f"{key}={amount!r}")
    for name, value in forwarded.items():
        assert name in _FORWARDED_OPTIONS, (
            f"{name} is an option of run that --cluster does not know"
        )
        yield from (f"--{name.replace('_', '-')}", str(value))
