"""The MLflow store: everything that is asked of MLflow's client.

Whatever goes wrong in a store is a `UserError` of one line here, a `StoreAway` where it may be well
again by itself. Nothing is written that the store has already.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from chip_core.errors import UserError, printable
from orchestrator.tracking.addresses import shown_address, without_secrets
from orchestrator.tracking.names import EXPERIMENT, PARAM, RUN, TAG, respelled, spelled
from orchestrator.tracking.trouble import StoreAway, check_reachable, is_new, is_server, told

_LOG = logging.getLogger(__name__)

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
#: What a request may hold: so many of a kind, and so many bytes.
_MOST = {"metrics": 1000, "params": 100, "tags": 100}
_LARGEST = 900_000
#: A run's name, and before what is spelled otherwise in MLflow: the tag with its true name.
NAME, TRUE_NAME = "mlflow.runName", "chip.name"


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
        self._left_out: set[tuple[str, str]] = set()  # (run, what) that it does not take
        self.answers = 0  # how often the store did what was asked
        self.refused: dict[str, str] = {}  # what it does not take, and why

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
        name = spelled(experiment, EXPERIMENT)
        with self._told():
            check_reachable(self.uri)
            self._client = connect(self.uri)
            known = self._client.get_experiment_by_name(name)
            if known is None:
                self._experiment = self._client.create_experiment(name, self._artifacts)
                return
            self._experiment = known.experiment_id
            if not self._experiment:
                raise ValueError("it has an experiment without an id")
            if known.lifecycle_stage == "deleted":
                self._client.restore_experiment(known.experiment_id)

    def check(self) -> None:
        """Find out whether the store can be used; a database that is not there is not made.

        Raises:
            UserError: it cannot be used.
        """
        with self._told():
            check_reachable(self.uri)
            if not is_new(self.uri):
                connect(self.uri).get_experiment_by_name("Default")

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
        try:
            with self._told():
                return _run(self._client.create_run(self._experiment, start, _as_tags(tags)))
        except StoreAway:
            raise
        except UserError:  # it may be for one of the tags: then without that one
            with self._told():
                run = _run(self._client.create_run(self._experiment, start))
        self.describe(run, tags)
        return run

    def describe(
        self,
        run: Run,
        tags: Mapping[str, str | None] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Set tags and params, those that are not so already. A tag of None is removed."""
        from mlflow.entities import Param, RunTag

        tags, params = tags or {}, params or {}
        said = {key: value for key, value in tags.items() if value is not None}
        wanted = _as_tags({**said, **_true_names(params)})
        fresh = [RunTag(*tag) for tag in wanted.items() if run.tags.get(tag[0]) != tag[1]]
        texts = {spelled(key): spelled(value, PARAM) for key, value in params.items()}
        missing = [Param(*param) for param in texts.items() if param[0] not in run.params]
        run.tags.update((tag.key, tag.value) for tag in self._log(run, "tags", fresh))
        run.params.update((param.key, param.value) for param in self._log(run, "params", missing))
        for key in (spelled(key) for key, value in tags.items() if value is None):
            if key in run.tags:
                with self._told():
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
        changed = [
            Metric(key, value, max(made, run.stamps.get(key, 0) + 1), 0)
            for key, value in as_metrics(figures).items()
            if run.metrics.get(key) != value
        ]
        for metric in self._log(run, "metrics", changed):
            run.metrics[metric.key] = metric.value
            run.stamps[metric.key] = metric.timestamp
        self._say_true_names(run, figures)

    def log_points(self, run: Run, points: Iterable[Point]) -> None:
        """Log a curve's points, those after the last step that the run has.

        A new attempt begins at step 1 again and comes to the same figures: nothing is doubled.
        """
        from mlflow.entities import Metric

        batch: list[Any] = []
        names: dict[str, None] = {}
        step, size = run.last_step, 0
        for point in points:
            if point.step <= step:
                continue
            figures = {CURVE + key: value for key, value in point.figures.items()}
            names |= dict.fromkeys(figures)
            metrics = [
                Metric(key, value, point.milliseconds, point.step)
                for key, value in as_metrics(figures).items()
            ]
            size += sum(map(_size, metrics))
            # A point is stored whole or not at all, so that the last step says it all.
            if batch and (len(batch) + len(metrics) > _MOST["metrics"] or size > _LARGEST):
                self._log(run, "metrics", batch)
                run.last_step = step
                batch, size = [], sum(map(_size, metrics))
            batch += metrics
            step = point.step
        self._log(run, "metrics", batch)
        run.last_step = step
        self._say_true_names(run, names)

    def upload(self, run: Run, folder: Path, under: str | None = None) -> None:
        """Attach a folder's files as artifacts; files of the same name are replaced."""
        try:
            with self._told():
                self._client.log_artifacts(run.id, str(folder), under)
        except StoreAway:
            raise
        except UserError:  # for one of them, perhaps
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                place = PurePosixPath(under or "", *file.relative_to(folder).parent.parts)
                self.upload_file(run, file, None if place == PurePosixPath() else str(place))

    def upload_file(self, run: Run, file: Path, under: str | None = None) -> None:
        """Attach one file as an artifact; one of the same name is replaced."""
        try:
            with self._told():
                self._client.log_artifact(run.id, str(file), under)
        except StoreAway:
            raise
        except UserError as error:
            self._leave_out(
                run, f"file {under}/{file.name}" if under else f"file {file.name}", error
            )

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

    def _log(self, run: Run, kind: str, entities: Sequence[Any]) -> list[Any]:
        """Log metrics, params or tags; return those that the store took."""
        taken = []
        wanted = [one for one in entities if (run.id, _what(kind, one)) not in self._left_out]
        for request in _requests(kind, wanted):
            try:
                with self._told():
                    self._client.log_batch(run.id, **{kind: request})
                taken += request
            except StoreAway:
                raise
            except UserError:
                taken += self._log_each(run, kind, request)
        return taken

    def _log_each(self, run: Run, kind: str, entities: Sequence[Any]) -> list[Any]:
        """Log what the store did not take together, key by key; return what it took."""
        taken = []
        for key in dict.fromkeys(entity.key for entity in entities):
            alike = [entity for entity in entities if entity.key == key]
            try:
                with self._told():
                    self._client.log_batch(run.id, **{kind: alike})
                taken += alike
            except StoreAway:
                raise
            except UserError as error:
                self._leave_out(run, _what(kind, alike[0]), error)
        return taken

    def _leave_out(self, run: Run, what: str, error: UserError) -> None:
        """Do without what the store does not take, as long as it takes something else.

        Raises:
            UserError: it takes nothing of the run.
        """
        with self._told():  # its name as it is
            self._client.set_tag(run.id, NAME, run.tags.get(NAME, run.id))
        self._left_out.add((run.id, what))
        said = without_secrets(str(error.__cause__ or error).split("\n")[0], self.uri)
        if not self.refused:  # one line; what else there is, is told at the end
            _LOG.warning(
                "MLflow does not take the %s (%s): it is in the report, and the rest is shown",
                what,
                printable(said, 300),
            )
        self.refused.setdefault(what, printable(said, 300))

    def _say_true_names(self, run: Run, names: Iterable[str]) -> None:
        said = _true_names(names)
        if said:
            self.describe(run, said)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn a store's trouble into one line for the user."""
        try:
            yield
        except Exception as error:  # drivers of databases and servers raise what they like
            raise told(error, self.uri) from error
        self.answers += 1


def as_metrics(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are numbers, named as the store has them."""
    return {spelled(key): float(value) for key, value in figures.items() if math.isfinite(value)}


def _as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags as the store has them."""
    said = {
        spelled(key): spelled(value, RUN if key == NAME else TAG) for key, value in tags.items()
    }
    name = tags.get(NAME)
    if name is not None and said[NAME] != name:
        said[TRUE_NAME] = spelled(name, TAG)  # as of a study whose variant is told at length
    return said


def _true_names(names: Iterable[str]) -> dict[str, str]:
    """Return tags that say the true names of those that are spelled otherwise, by their marks."""
    return {
        f"{TRUE_NAME}.{other.rpartition('--')[2]}": name for name, other in respelled(names).items()
    }


def _what(kind: str, entity: Any) -> str:
    return f"{kind.removesuffix('s')} {entity.key}"


def _requests(kind: str, entities: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield what goes into one request each."""
    request: list[Any] = []
    size = 0
    for entity in entities:
        if request and (len(request) == _MOST[kind] or size + _size(entity) > _LARGEST):
            yield request
            request, size = [], 0
        request.append(entity)
        size += _size(entity)
    if request:
        yield request


def _size(entity: Any) -> int:
    """Return how many bytes of a request a metric, param or tag takes, or a few more."""
    return len(json.dumps([entity.key, str(entity.value)])) + 100


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
