"""Check a cluster file against Ray's own schema."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import ray.autoscaler
from ray.autoscaler.sdk import fillout_defaults

from chip_core.utils.registry import suggest
from orchestrator.cluster.config import ClusterFile, Problem


def schema_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield every violation of Ray's schema."""
    text = (Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8")
    schema = {**json.loads(text)}
    # `ray up` sets it for the provider `local`, and removes it before validation.
    schema["properties"] = {
        **schema["properties"],
        "min_workers": {"type": "integer", "minimum": 0},
    }
    errors = sorted(
        jsonschema.Draft7Validator(schema).iter_errors(cluster.content),
        key=lambda error: [str(part) for part in error.absolute_path],
    )
    for error in errors:
        yield from _violation_problems(error)
    if not errors:
        yield from _refusal_problems(dict(cluster.content))


def _violation_problems(error: Any) -> Iterator[Problem]:
    path = _format_path(error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {})
        for key in sorted(set(map(str, error.instance)) - set(known)):
            key_path = f"{path}.{key}" if path else key
            yield Problem(key=key_path, message=f"unknown key: {suggest(key, known)}")
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                yield Problem(key=f"{path}.{key}" if path else key, message="is missing: add it")
    else:
        yield Problem(key=path or "the file", message=f"{error.message}: see {_SCHEMA_URL}")


_SCHEMA_URL = "https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html"


def _refusal_problems(content: dict[str, Any]) -> Iterator[Problem]:
    """Yield why Ray refuses a file that fits its schema. Ray gives the first reason only."""
    output = io.StringIO()
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            fillout_defaults(copy.deepcopy(content))
    except Exception as error:  # Ray has no own class for it
        lines = [
            line for line in (*str(error).splitlines(), *output.getvalue().splitlines()) if line
        ]
        reason = lines[0].strip() if lines else type(error).__name__
        yield Problem(key="the file", message=f"Ray refuses it: {reason}: see {_SCHEMA_URL}")
    finally:
        logger.setLevel(level)


def _format_path(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
