"""Return an MLflow store's content of a study, in a form that can be compared."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

#: Keys of measured durations and rates within scores and tags.
_TIMINGS = ("seconds", "pace")
#: Prefixes of timing figures and tags. In all of these, two executions of one trial differ.
_OF_CLOCKS = ("timing/", "train/tokens_per_second", "train/data_wait")
_PARENT = "mlflow.parentRunId"
_HOW = "chip.scored"  # has timings of scoring


def read_contents(uri: str, study: str, *, clocks: bool = True) -> dict[str, dict[str, Any]]:
    """Return run -> status, times, tags, params, histories of metrics, and artifacts' hashes.

    A run and its parent are identified by what they represent, because ids differ between stores.

    Args:
        uri: the store's.
        study: the study's name.
        clocks: False leaves out what differs between two executions: times, rates and values made
            from them; of artifacts only names, responses and scores stay.
    """
    from orchestrator.tracking.client import connect

    client = connect(uri)
    experiment = client.get_experiment_by_name(study)
    runs, token = [], None
    while token != "":
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token or ""
    names = {run.info.run_id: _identify_run(run) for run in runs}
    found = {}
    for run in runs:
        tags = dict(run.data.tags)
        if not clocks:
            tags = {
                key: json.dumps(_drop_timings(json.loads(value))) if key.startswith(_HOW) else value
                for key, value in tags.items()
            }
        if _PARENT in tags:
            tags[_PARENT] = names[tags[_PARENT]]
        metrics = {
            key: sorted(
                (point.step, point.timestamp if clocks else 0, point.value)
                for point in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
            if clocks or not key.startswith(_OF_CLOCKS)
        }
        one = {
            "status": run.info.status,
            "tags": tags,
            "params": dict(run.data.params),
            "metrics": metrics,
            "artifacts": _hash_artifacts(client, run.info.run_id, clocks),
        }
        if clocks:
            one |= {"start": run.info.start_time, "end": run.info.end_time}
        assert names[run.info.run_id] not in found, f"two runs of {names[run.info.run_id]}"
        found[names[run.info.run_id]] = one
    return found


def find_differences(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> list[str]:
    """Return the differences between two stores' contents, each as `run: what`."""
    found = [f"{run}: in one store alone" for run in sorted(set(one) ^ set(other))]
    for run in sorted(set(one) & set(other)):
        for part in one[run]:
            if one[run][part] != other[run][part]:
                found.append(
                    f"{run}: {part}: {_find_first_difference(one[run][part], other[run][part])}"
                )
    return found


def _find_first_difference(one: Any, other: Any) -> str:
    if isinstance(one, dict):
        for key in sorted(set(one) | set(other)):
            if one.get(key) != other.get(key):
                return f"{key}: {str(one.get(key))[:200]} / {str(other.get(key))[:200]}"
    return f"{one} / {other}"


def _identify_run(run: Any) -> str:
    tags = run.data.tags
    slot = (tags["chip.kind"], tags.get("chip.arm"), tags.get("chip.search"), tags.get("chip.seed"))
    return " ".join(part for part in slot if part)


def _hash_artifacts(client: Any, run: str, clocks: bool) -> dict[str, str]:
    found = {}
    folders: list[str | None] = [None]
    while folders:
        for entry in client.list_artifacts(run, folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            elif clocks or entry.path.startswith(("responses/", "scores/")):
                with tempfile.TemporaryDirectory() as folder:
                    file = client.download_artifacts(run, entry.path, folder)
                    content = Path(file).read_bytes()
                if not clocks and entry.path.endswith(".json"):
                    content = json.dumps(_drop_timings(json.loads(content))).encode()
                found[entry.path] = hashlib.sha256(content).hexdigest()
            else:
                found[entry.path] = ""
    return found


def _drop_timings(value: Any) -> Any:
    """Return plain data without timings."""
    if isinstance(value, dict):
        return {key: _drop_timings(one) for key, one in value.items() if key not in _TIMINGS}
    return [_drop_timings(one) for one in value] if isinstance(value, list) else value
