"""The MLflow store: everything that is asked of MLflow's client.

Whatever goes wrong in a store is a `UserError` of one line here, a `StoreAway` where it may be well
again by itself. Nothing is written that the store has already.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.tracking.addresses import shown_address
from orchestrator.tracking.trouble import check_reachable, is_server, told

#: Where the curves of a run are among its metrics.
CURVE = "train/"
#: Set before MLflow is imported, where the user has not set them.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own (7 retries, 120 s each) would say nothing for minutes. No retry: what was asked
    # for is looked up before it is asked for again, so that no run is made twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
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
    stamps: dict[str, int]  # when that was logged, in milliseconds since 1970
    last_step: int  # of its curves; 0 where there is none


class MlflowStore:
    """One experiment in an MLflow store."""

    def __init__(self, uri: str, artifacts: str | None) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._client: Any = None
        self._experiment = ""
        self.answers = 0  # how often the store did what was asked

    @property
    def address(self) -> str:
        """The URI without what opens the store."""
        return shown_address(self.uri)

    @property
    def pages(self) -> str | None:
        """The address of a server's pages, without user and password; None of a database."""
        if not is_server(self.uri):
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
            check_reachable(self.uri)
            self._client = connect(self.uri)
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                self._experiment = self._client.create_experiment(experiment, self._artifacts)
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

    def create(self, tags: Mapping[str, str], began: float | None = None) -> Run:
        """Make a run; it is RUNNING, since `began` (seconds since 1970) or now."""
        start = None if began is None else _milliseconds(began)
        with self._told():
            return _run(self._client.create_run(self._experiment, start, dict(tags)))

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

    def log_figures(self, run: Run, figures: Mapping[str, float], at: float | None = None) -> None:
        """Log final figures, each one value; one that is there already is not logged again.

        Args:
            run: whose.
            figures: by name.
            at: when they were made, in seconds since 1970; now if not said. One that replaces an
                older figure is never the older of the two.
        """
        from mlflow.entities import Metric

        made = _milliseconds(time.time() if at is None else at)
        changed = {
            key: value for key, value in finite(figures).items() if run.metrics.get(key) != value
        }
        stamps = {key: max(made, run.stamps.get(key, 0) + 1) for key in changed}
        self._log(run, [Metric(key, value, stamps[key], 0) for key, value in changed.items()])
        run.metrics.update(changed)
        run.stamps.update(stamps)

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

    def set_status(self, run: Run, status: str, ended: float | None = None) -> None:
        """Set a run's status, where it is another; it ended at `ended`, or now."""
        if run.status == status:
            return
        with self._told():
            if status == "RUNNING":
                self._client.update_run(run.id, status=status)
            else:
                end = None if ended is None else _milliseconds(ended)
                self._client.set_terminated(run.id, status, end)
        run.status = status

    def _log(self, run: Run, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), _BATCH):
            with self._told():
                self._client.log_batch(run.id, metrics=metrics[start : start + _BATCH])

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn a store's trouble into one line for the user."""
        try:
            yield
        except Exception as error:  # drivers of databases and servers raise what they like
            raise told(error, self.uri) from error
        self.answers += 1


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


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _run(run: Any) -> Run:
    latest = run.data.to_proto().metrics
    steps = [metric.step for metric in latest if metric.key.startswith(CURVE)]
    return Run(
        id=run.info.run_id,
        status=run.info.status,
        started=run.info.start_time,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        stamps={metric.key: metric.timestamp for metric in latest},
        last_step=max(steps, default=0),
    )
