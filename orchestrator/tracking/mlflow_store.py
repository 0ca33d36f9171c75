"""The MLflow store: everything that is asked of MLflow's client.

Whatever goes wrong in a store is a `UserError` of one line here. Nothing is written that the store
has already.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from chip_core.errors import UserError, printable
from orchestrator.tracking.addresses import shown_address, without_secrets

#: Where the curves of a run are among its metrics.
CURVE = "train/"
#: Set before MLflow is imported, where the user has not set them.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own (7 retries, 120 s each) would hold a study up for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_CONNECT_SECONDS = 5.0
_BATCH = 1000  # metrics that the store takes at once
_LONGEST_PARAM, _LONGEST_TAG, _LONGEST_METRIC = 6000, 8000, 250
_NOT_IN_A_NAME = re.compile(r"[^\w./: -]")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step of a curve."""

    step: int
    milliseconds: int
    figures: Mapping[str, float]


@dataclass(kw_only=True)
class Run:
    """A run as the store has it; kept up to date by what is written."""

    id: str
    status: str
    started: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]  # the latest value of each
    last_step: int  # of its curves; 0 where there is none


class MlflowStore:
    """One experiment in an MLflow store."""

    def __init__(self, uri: str, artifacts: Path | None) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._client: Any = None
        self._experiment = ""

    @property
    def address(self) -> str:
        """The URI without what opens the store."""
        return shown_address(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether the store is a server."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def pages(self) -> str | None:
        """The address of a server's pages, without user and password; None of a database."""
        if not self.is_server:
            return None
        server = urlsplit(self.uri)
        return f"{server.scheme}://{server.netloc.rpartition('@')[2]}{server.path}".rstrip("/")

    @property
    def experiment(self) -> str:
        """The experiment's id."""
        return self._experiment

    def open(self, experiment: str) -> None:
        """Connect; make the database and the experiment where they are missing.

        Raises:
            UserError: the store cannot be used.
        """
        with self._told():
            self._check_server()
            self._client = connect(self.uri)
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                location = None if self._artifacts is None else self._artifacts.as_uri()
                self._experiment = self._client.create_experiment(experiment, location)
                return
            self._experiment = known.experiment_id
            if not self._experiment:
                raise ValueError("it has an experiment without an id")
            if known.lifecycle_stage == "deleted":
                self._client.restore_experiment(known.experiment_id)

    def runs(self) -> list[Run]:
        """Return every active run of the experiment."""
        found: list[Run] = []
        token = None
        with self._told():
            while True:
                page = self._client.search_runs(
                    [self._experiment], max_results=1000, page_token=token
                )
                found.extend(_run(run) for run in page)
                token = page.token
                if not token:
                    return found

    def create(self, tags: Mapping[str, str]) -> Run:
        """Make a run; it is RUNNING."""
        with self._told():
            return _run(self._client.create_run(self._experiment, tags=dict(tags)))

    def describe(
        self,
        run: Run,
        tags: Mapping[str, str | None] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Set tags and params, those that are not so already. A tag of None is removed."""
        from mlflow.entities import Param, RunTag

        tags = tags or {}
        fresh = {key: value[:_LONGEST_TAG] for key, value in tags.items() if value is not None}
        fresh = {key: value for key, value in fresh.items() if run.tags.get(key) != value}
        gone = [key for key, value in tags.items() if value is None and key in run.tags]
        wanted = {
            _NOT_IN_A_NAME.sub("_", key): value[:_LONGEST_PARAM]
            for key, value in (params or {}).items()
        }
        missing = {key: value for key, value in wanted.items() if key not in run.params}
        with self._told():
            if fresh or missing:
                self._client.log_batch(
                    run.id,
                    tags=[RunTag(key, value) for key, value in fresh.items()],
                    params=[Param(key, value) for key, value in missing.items()],
                )
            run.tags.update(fresh)
            run.params.update(missing)
            for key in gone:
                self._client.delete_tag(run.id, key)
                del run.tags[key]

    def log_figures(self, run: Run, figures: Mapping[str, float]) -> None:
        """Log final figures, each one value; one that is there already is not logged again."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        changed = {
            key: value for key, value in finite(figures).items() if run.metrics.get(key) != value
        }
        self._log(run, [Metric(key, value, now, 0) for key, value in changed.items()])
        run.metrics.update(changed)

    def log_points(self, run: Run, points: Iterable[Point]) -> None:
        """Log a curve's points, those after the last step that the run has.

        A new attempt begins at step 1 again and comes to the same figures: nothing is doubled.
        """
        from mlflow.entities import Metric

        batch: list[Any] = []
        step = run.last_step
        for point in points:
            if point.step <= step:
                continue
            metrics = [
                Metric(CURVE + key, value, point.milliseconds, point.step)
                for key, value in finite(point.figures).items()
            ]
            # A point is stored whole or not at all, so that the last step says it all.
            if batch and len(batch) + len(metrics) > _BATCH:
                self._log(run, batch)
                run.last_step = step
                batch = []
            batch += metrics
            step = point.step
        self._log(run, batch)
        run.last_step = step

    def upload(self, run: Run, folder: Path, under: str | None = None) -> None:
        """Attach a folder's files as artifacts; files of the same name are replaced."""
        with self._told():
            self._client.log_artifacts(run.id, str(folder), under)

    def upload_file(self, run: Run, file: Path, under: str | None = None) -> None:
        """Attach one file as an artifact; one of the same name is replaced."""
        with self._told():
            self._client.log_artifact(run.id, str(file), under)

    def set_status(self, run: Run, status: str) -> None:
        """Set a run's status, where it is another."""
        if run.status == status:
            return
        with self._told():
            if status == "RUNNING":
                self._client.update_run(run.id, status=status)
            else:
                self._client.set_terminated(run.id, status=status)
        run.status = status

    def _log(self, run: Run, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), _BATCH):
            with self._told():
                self._client.log_batch(run.id, metrics=metrics[start : start + _BATCH])

    def _check_server(self) -> None:
        """Find out soon whether a server is there at all."""
        server = urlsplit(self.uri)
        if server.scheme not in ("http", "https") or server.scheme in getproxies():
            return
        port = server.port or (443 if server.scheme == "https" else 80)
        socket.create_connection((server.hostname, port), timeout=_CONNECT_SECONDS).close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn a store's trouble into one line for the user."""
        try:
            yield
        except Exception as error:  # drivers of databases and servers raise what they like
            raise UserError(self._line(error)) from error

    def _line(self, error: Exception) -> str:
        said = without_secrets(str(error).split("\n")[0], self.uri)
        text = printable(" ".join(said.split()), 300)
        where = f"the MLflow store {self.address}"
        if "out-of-date database schema" in str(error):
            return (
                f"{where} has another MLflow version's schema: back it up and run "
                f"`mlflow db upgrade {self.address}`, or name another store by --tracking-uri"
            )
        if "maintenance mode" in text:
            return f"{where} is a folder, which MLflow gave up: name a database, as sqlite:///FILE"
        if self.is_server:
            return (
                f"{where} does not answer as it should ({text}): "
                "start the server, or name another store by --tracking-uri"
            )
        return f"{where} cannot be used ({text}): mend it, or name another by --tracking-uri"


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are numbers."""
    return {key: float(value) for key, value in figures.items() if math.isfinite(value)}


def metric_name(name: str) -> str:
    """Return a name that the store takes, as near to the given one as may be."""
    return _NOT_IN_A_NAME.sub("", name)[:_LONGEST_METRIC]


def connect(uri: str) -> Any:
    """Return MLflow's client of a store."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # two seconds, and it reads the environment

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks as errors
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return MlflowClient(uri)


def _run(run: Any) -> Run:
    steps = [metric.step for metric in run.data.to_proto().metrics if metric.key.startswith(CURVE)]
    return Run(
        id=run.info.run_id,
        status=run.info.status,
        started=run.info.start_time,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        last_step=max(steps, default=0),
    )
