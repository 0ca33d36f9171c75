"""The client of MLflow, through which all requests to a store go.

Every error of a store becomes a `UserError` of one line: `StoreUnavailable` if it may be temporary,
else `StoreRefused`. Nothing is written that the store already has.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from chip_core.utils.errors import UserError, to_printable
from orchestrator.storage.download import artifact_uri
from orchestrator.tracking.address import (
    StoreRefused,
    StoreUnavailable,
    check_connection,
    explain_error,
    is_new,
    redact_text,
    redact_uri,
    resolve_uri,
    workdir_uri,
)
from orchestrator.tracking.names import EXPERIMENT, PARAM, RUN, TAG, encode_invalid, encode_name

_LOG = logging.getLogger(__name__)

#: Set before MLflow is imported, unless the user has set them.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's defaults (7 retries, 120 s each) would be silent for minutes. No retries: the result
    # of a request is looked up before it is repeated, so that no run is created twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
#: Limits of a request: entities of each kind, and bytes.
_MAX_ENTITIES = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_BYTES = 900_000
#: Tag with a run's name, and prefix of the tags with true names that MLflow encodes differently.
NAME, TRUE_NAME = "mlflow.runName", "chip.name"


@dataclass(frozen=True, kw_only=True)
class Point:
    """Figures of a step, or final figures, which have step 0."""

    figures: Mapping[str, float]
    time: float | None  # seconds since 1970; None: now
    step: int = 0


class Run:
    """A run in the store, updated with every write."""

    def __init__(self, run: Any) -> None:
        """Copy a run of MLflow's."""
        self.id: str = run.info.run_id
        self.status: str = run.info.status
        self.started: int = run.info.start_time  # milliseconds since 1970
        self.tags: dict[str, str] = dict(run.data.tags)
        self.params: dict[str, str] = dict(run.data.params)
        #: last value of each metric, with its step and timestamp
        self.latest = {metric.key: metric for metric in run.data.to_proto().metrics}

    @property
    def metrics(self) -> dict[str, float]:
        """Latest values of its metrics."""
        return {key: metric.value for key, metric in self.latest.items()}


class MlflowStore:
    """One experiment in an MLflow store."""

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        """Create the client of a URI, or of a work directory's runs, without any request yet."""
        self.uri = resolve_uri(workdir, uri)
        self.address = redact_uri(self.uri)
        # None: the store is elsewhere.
        self._workdir = workdir if self.uri == workdir_uri(workdir) else None
        self.experiment = ""  # id of the experiment
        self.completed_requests = 0
        self.refused: dict[str, str] = {}  # what the store rejects, and why
        self._client: Any = None
        self._refused_items: set[tuple[str, str]] = set()  # (run, kind and name)

    def open(self, experiment: str, *, create: bool = True) -> bool:
        """Connect, and create or restore a missing database and experiment if `create`.

        Returns:
            whether the experiment exists.

        Raises:
            UserError: the store cannot be used.
        """
        name = encode_name(experiment, EXPERIMENT)
        with self._request():
            if create and self._workdir is not None:
                self._workdir.mkdir(parents=True, exist_ok=True)
            check_connection(self.uri)
            if not create and is_new(self.uri):
                return False
            client = self._client = connect(self.uri)
            existing = client.get_experiment_by_name(name)
            deleted = existing is not None and existing.lifecycle_stage == "deleted"
            if not create and (existing is None or deleted):
                return False
            if existing is not None:
                self.experiment = existing.experiment_id
            else:
                # A database without a server would store artifacts in the current folder.
                location = None if self._workdir is None else artifact_uri(self._workdir)
                self.experiment = client.create_experiment(name, location)
            if deleted:
                client.restore_experiment(self.experiment)
            if not self.experiment:
                raise ValueError("it has an experiment without an id")
        return True

    def check(self) -> None:
        """Check whether the store can be used, without creating a database.

        Raises:
            UserError: it cannot be used.
        """
        if not self.lacks_database:  # the work directory is checked elsewhere
            self.open("Default", create=False)

    @property
    def lacks_database(self) -> bool:
        """Whether it is the work directory's database and does not exist yet."""
        return self._workdir is not None and is_new(self.uri)

    def runs(self) -> list[Run]:
        """Return every active run of the experiment."""
        runs, token = list[Run](), None
        with self._request() as client:
            while token != "":
                page = client.search_runs([self.experiment], max_results=1000, page_token=token)
                runs += map(Run, page)
                token = page.token or ""
        return runs

    def create_run(self, tags: Mapping[str, str], began: float | None = None) -> Run:
        """Create a run. It is RUNNING since `began` (seconds since 1970) or now."""
        start = None if began is None else _to_milliseconds(began)
        try:
            with self._request() as client:
                return Run(client.create_run(self.experiment, start, _encode_tags(tags)))
        except StoreRefused:  # maybe because of a tag, which is then left out
            with self._request() as client:
                run = Run(client.create_run(self.experiment, start))
        self.describe_run(run, tags)
        return run

    def describe_run(
        self,
        run: Run,
        tags: Mapping[str, str | None] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Set tags and params that differ from the store's. A tag of None is removed."""
        from mlflow.entities import Param, RunTag

        tags, params = tags or {}, params or {}
        texts = {key: value for key, value in tags.items() if value is not None}
        new_tags = _encode_tags({**texts, **_true_names(params)}).items()
        new_params = {encode_name(k): encode_name(v, PARAM) for k, v in params.items()}.items()
        self._log(run, "tags", (RunTag(k, v) for k, v in new_tags if run.tags.get(k) != v))
        self._log(run, "params", (Param(k, v) for k, v in new_params if k not in run.params))
        for key in run.tags.keys() & {encode_name(key) for key in tags.keys() - texts.keys()}:
            with self._request() as client:
                client.delete_tag(run.id, key)
            del run.tags[key]

    def log_points(self, run: Run, points: Iterable[Point]) -> None:
        """Log the figures of points that the run does not have, in the points' order.

        Of each figure, only steps after the last logged one are new: a further attempt starts at
        step 1 again with the same figures. A final figure whose value changed is logged again, with
        a later time.
        """
        from mlflow.entities import Metric

        names: dict[str, None] = {}
        latest, now = dict(run.latest), time.time()

        def new_metrics() -> Iterator[Any]:
            for point in points:
                names.update(dict.fromkeys(point.figures))
                timestamp = _to_milliseconds(now if point.time is None else point.time)
                for key, value in encode_metrics(point.figures).items():
                    last, later = latest.get(key), timestamp
                    if last is not None and point.step <= last.step:
                        if value == last.value or not point.step == last.step == 0:
                            continue
                        later = max(timestamp, last.timestamp + 1)
                    latest[key] = Metric(key, value, later, point.step)
                    yield latest[key]

        self._log(run, "metrics", new_metrics())
        self.describe_run(run, _true_names(names))

    def upload_folder(self, run: Run, folder: Path, artifact_path: str = "") -> None:
        """Upload a folder's files as artifacts. Files of the same name are replaced."""
        try:
            with self._request() as client:
                client.log_artifacts(run.id, str(folder), artifact_path or None)
        except StoreRefused:  # maybe because of one file
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                parent = PurePosixPath(artifact_path, file.relative_to(folder).parent)
                self.upload_file(run, file, "/".join(parent.parts))

    def upload_file(self, run: Run, file: Path, artifact_path: str = "") -> None:
        """Upload a file as an artifact. One of the same name is replaced."""
        try:
            with self._request() as client:
                client.log_artifact(run.id, str(file), artifact_path or None)
        except StoreRefused as error:
            self._leave_out(run, f"file {PurePosixPath(artifact_path, file.name)}", error)

    def set_status(self, run: Run, status: str, ended: float | None = None) -> None:
        """Set a run's status if it differs. The end is at `ended`, or now."""
        if run.status == status:
            return
        with self._request() as client:
            if status == "RUNNING":
                client.update_run(run.id, status=status)
            else:
                end = None if ended is None else _to_milliseconds(ended)
                client.set_terminated(run.id, status, end)
        run.status = status

    def delete_runs(self, runs: Iterable[Run], *, experiment: bool) -> None:
        """Delete runs, or all and the experiment. MLflow can restore them."""
        with self._request() as client:
            for run in runs:
                client.delete_run(run.id)
            if experiment:
                client.delete_experiment(self.experiment)

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """Yield MLflow's client for a request. Its exceptions become errors of one line."""
        try:
            yield self._client
        except Exception as error:  # drivers and servers raise various exceptions
            raise explain_error(error, self.uri) from error
        self.completed_requests += 1

    def _log(self, run: Run, kind: str, entities: Iterable[Any]) -> None:
        """Log "metrics", "params" or "tags", key by key if the store rejects them together."""
        noun = kind.removesuffix("s")
        allowed = (e for e in entities if (run.id, f"{noun} {e.key}") not in self._refused_items)
        for batch in _batches(allowed, _MAX_ENTITIES[kind]):
            try:
                with self._request() as client:
                    client.log_batch(run.id, **{kind: batch})
            except StoreRefused as error:
                keys = list(dict.fromkeys(entity.key for entity in batch))
                if len(keys) == 1:
                    self._leave_out(run, f"{noun} {keys[0]}", error)
                    continue
                for key in keys:
                    self._log(run, kind, [entity for entity in batch if entity.key == key])
            else:
                for entity in batch:
                    if kind == "metrics":
                        run.latest[entity.key] = entity
                    else:
                        getattr(run, kind)[entity.key] = entity.value

    def _leave_out(self, run: Run, item: str, error: UserError) -> None:
        """Leave out an item that the store rejects, as long as it accepts a tag.

        Raises:
            UserError: the store accepts nothing for the run.
        """
        with self._request() as client:
            client.set_tag(run.id, NAME, run.tags.get(NAME, run.id))  # unchanged, as a test
        self._refused_items.add((run.id, item))
        reason = redact_text(str(error.__cause__ or error).split("\n")[0], self.uri)
        reason = to_printable(reason, 300)
        if not self.refused:  # one line; others are reported at the end
            _LOG.warning(
                "MLflow rejects the %s (%s): it is in the report, and the rest is shown",
                item,
                reason,
            )
        self.refused.setdefault(item, reason)


def check_store(workdir: Path, uri: str | None) -> None:
    """Check whether a store can be used, before anything is created. It may be unavailable.

    Raises:
        UserError: it cannot be used.
    """
    with suppress(StoreUnavailable):
        MlflowStore(workdir, uri).check()


def connect(uri: str) -> Any:
    """Return MLflow's client for a store."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes two seconds, and reads the environment

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks as errors
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return MlflowClient(uri)


def encode_metrics(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the finite figures with their names in the store."""
    return {encode_name(k): float(value) for k, value in figures.items() if math.isfinite(value)}


def _encode_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with their names and values in the store."""
    encoded = {
        encode_name(key): encode_name(value, RUN if key == NAME else TAG)
        for key, value in tags.items()
    }
    if encoded.get(NAME) != tags.get(NAME):
        encoded[TRUE_NAME] = encode_name(tags[NAME], TAG)  # such as of a variant with a long name
    return encoded


def _true_names(names: Iterable[str]) -> dict[str, str]:
    """Return tags with the true names of encoded names, by their hashes."""
    return {
        f"{TRUE_NAME}.{encoded.rpartition('--')[2]}": name
        for name, encoded in encode_invalid(names).items()
    }


def _batches(entities: Iterable[Any], max_entities: int) -> Iterator[list[Any]]:
    """Yield the entities of each request."""
    batch: list[Any] = []
    size = 0
    for entity in entities:
        # Slightly more bytes than a metric, param or tag takes in a request.
        added = len(json.dumps([entity.key, str(entity.value)])) + 100
        if batch and (len(batch) == max_entities or size + added > _MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entity)
        size += added
    if batch:
        yield batch


def _to_milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
