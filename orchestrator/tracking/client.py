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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from chip_core.utils.errors import UserError, printable
from orchestrator.storage.download import artifact_uri
from orchestrator.tracking.address import (
    StoreRefused,
    StoreUnavailable,
    check_reachable,
    is_new,
    own_uri,
    shown_address,
    told,
    tracking_uri,
    without_secrets,
)
from orchestrator.tracking.names import EXPERIMENT, PARAM, RUN, TAG, respelled, spelled

_LOG = logging.getLogger(__name__)
_Found = TypeVar("_Found")

#: Prefix of a run's curves among its metrics.
CURVE = "train/"
#: Prefix of its checkpoints' figures, by step.
CHECKPOINT = "checkpoint/"
#: Set before MLflow is imported, unless the user has set them.
_DEFAULTS = {
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
_MOST = {"metrics": 1000, "params": 100, "tags": 100}
_LARGEST = 900_000
#: Tag with a run's name, and prefix of the tags with true names that MLflow spells differently.
NAME, TRUE_NAME = "mlflow.runName", "chip.name"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One step of a curve."""

    step: int
    milliseconds: int
    figures: Mapping[str, float]


@dataclass(kw_only=True)
class Run:
    """A run in the store, updated with every write."""

    id: str
    status: str
    started: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]  # latest values
    stamps: dict[str, int]  # when they were logged, in milliseconds since 1970
    last_step: int  # last step of its curves; 0 without any

    def note(self, kind: str, entity: Any) -> None:
        """Record a metric, param or tag that the store has accepted."""
        getattr(self, kind)[entity.key] = entity.value
        if kind == "metrics":
            self.stamps[entity.key] = entity.timestamp
            self.last_step = max(self.last_step, entity.step)


class MlflowStore:
    """One experiment in an MLflow store."""

    def __init__(self, uri: str, workdir: Path | None = None) -> None:
        """Create a client without any request yet.

        Args:
            uri: URI of the store.
            workdir: the work directory that contains the store; None: it is elsewhere.
        """
        self.uri, self._workdir = uri, workdir
        self.address = shown_address(uri)  # without secrets
        self.experiment = ""  # id of the experiment
        self.answers = 0  # number of successful requests
        self.refused: dict[str, str] = {}  # what the store rejects, and why
        self._client: Any = None
        self._left_out: set[tuple[str, str]] = set()  # rejected (run, what)

    def open(self, experiment: str, *, make: bool = True) -> bool:
        """Connect, and create a missing database and experiment if `make`.

        Returns:
            whether the experiment exists.

        Raises:
            UserError: the store cannot be used.
        """
        name = spelled(experiment, EXPERIMENT)

        def find(_: Any) -> bool:
            if make and self._workdir is not None:
                self._workdir.mkdir(parents=True, exist_ok=True)
            check_reachable(self.uri)
            if not make and is_new(self.uri):
                return False
            self._client = connect(self.uri)
            known = self._client.get_experiment_by_name(name)
            there = known is not None and known.lifecycle_stage != "deleted"
            if known is not None:
                self.experiment = known.experiment_id
            elif make:
                # A database without a server would store artifacts in the current folder.
                place = None if self._workdir is None else artifact_uri(self._workdir)
                self.experiment = self._client.create_experiment(name, place)
            if known is not None and make and not there:
                self._client.restore_experiment(self.experiment)
            if make and not self.experiment:
                raise ValueError("it has an experiment without an id")
            return make or there

        return self._ask(find)

    def check(self) -> None:
        """Check whether the store can be used, without creating a database.

        Raises:
            UserError: it cannot be used.
        """
        if self.lacks_database:  # the work directory is checked elsewhere
            return

        def look(_: Any) -> None:
            check_reachable(self.uri)
            if not is_new(self.uri):
                connect(self.uri).get_experiment_by_name("Default")

        self._ask(look)

    @property
    def lacks_database(self) -> bool:
        """Whether it is the work directory's database and does not exist yet."""
        return self._workdir is not None and is_new(self.uri)

    def runs(self) -> list[Run]:
        """Return every active run of the experiment."""

        def search(client: Any) -> list[Run]:
            found, token = [], None
            while token != "":
                page = client.search_runs([self.experiment], max_results=1000, page_token=token)
                found += [_run(run) for run in page]
                token = page.token or ""
            return found

        return self._ask(search)

    def create(self, tags: Mapping[str, str], began: float | None = None) -> Run:
        """Create a run. It is RUNNING since `began` (seconds since 1970) or now."""
        start = None if began is None else _milliseconds(began)
        try:
            return self._ask(
                lambda client: _run(client.create_run(self.experiment, start, _as_tags(tags)))
            )
        except StoreRefused:  # maybe because of a tag, which is then left out
            run = self._ask(lambda client: _run(client.create_run(self.experiment, start)))
        self.describe(run, tags)
        return run

    def describe(
        self,
        run: Run,
        tags: Mapping[str, str | None] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Set tags and params that differ from the store's. A tag of None is removed."""
        from mlflow.entities import Param, RunTag

        tags, params = tags or {}, params or {}
        said = {key: value for key, value in tags.items() if value is not None}
        wanted = _as_tags({**said, **_true_names(params)})
        texts = {spelled(key): spelled(value, PARAM) for key, value in params.items()}
        self._log(
            run, "tags", ([RunTag(*tag)] for tag in wanted.items() if tag not in run.tags.items())
        )
        self._log(
            run, "params", ([Param(*one)] for one in texts.items() if one[0] not in run.params)
        )
        for key in (spelled(key) for key in tags if key not in said):
            if run.tags.pop(key, None) is not None:
                self._ask(lambda client, key=key: client.delete_tag(run.id, key))  # type: ignore[misc]

    def log_figures(self, run: Run, figures: Mapping[str, float], at: float | None = None) -> None:
        """Log final figures, one value each, unless the store has the same value.

        Args:
            run: whose.
            figures: figures by name.
            at: time of the figures, in seconds since 1970; None: now. A figure that replaces an
                older one always gets a later time.
        """
        from mlflow.entities import Metric

        made = _milliseconds(time.time() if at is None else at)
        changed = [
            [Metric(key, value, max(made, run.stamps.get(key, 0) + 1), 0)]
            for key, value in as_metrics(figures).items()
            if run.metrics.get(key) != value
        ]
        self._log(run, "metrics", changed)
        self.describe(run, _true_names(figures))

    def log_series(
        self, run: Run, series: Mapping[int, Mapping[str, float]], at: float | None = None
    ) -> None:
        """Log the figures of a training's checkpoints by step. Existing ones are kept.

        Args:
            run: whose.
            series: step -> figures by name.
            at: time of the figures, in seconds since 1970; None: now.
        """
        from mlflow.entities import Metric

        made = _milliseconds(time.time() if at is None else at)
        named = {
            step: {CHECKPOINT + name: value for name, value in figures.items()}
            for step, figures in series.items()
        }
        there = set(run.metrics)
        self._log(
            run,
            "metrics",
            (
                [
                    Metric(key, value, made, step)
                    for key, value in as_metrics(figures).items()
                    if key not in there
                ]
                for step, figures in sorted(named.items())
            ),
        )
        self.describe(run, _true_names({name: None for one in named.values() for name in one}))

    def log_points(self, run: Run, points: Iterable[Point]) -> None:
        """Log a curve's points after the last step that the run has.

        A new attempt starts at step 1 again with the same figures, so nothing is logged twice.
        """
        from mlflow.entities import Metric

        names: dict[str, None] = {}

        def fresh() -> Iterator[list[Any]]:
            last = run.last_step
            for point in points:
                if point.step > last:
                    last = point.step
                    figures = {CURVE + key: value for key, value in point.figures.items()}
                    names.update(dict.fromkeys(figures))
                    yield [
                        Metric(key, value, point.milliseconds, point.step)
                        for key, value in as_metrics(figures).items()
                    ]

        self._log(run, "metrics", fresh())
        self.describe(run, _true_names(names))

    def upload(self, run: Run, folder: Path, under: str | None = None) -> None:
        """Upload a folder's files as artifacts. Files of the same name are replaced."""
        try:
            self._ask(lambda client: client.log_artifacts(run.id, str(folder), under))
        except StoreRefused:  # maybe because of one file
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                steps = [*filter(None, [under]), *file.relative_to(folder).parent.parts]
                self.upload_file(run, file, "/".join(steps) or None)

    def upload_file(self, run: Run, file: Path, under: str | None = None) -> None:
        """Upload a file as an artifact. One of the same name is replaced."""
        try:
            self._ask(lambda client: client.log_artifact(run.id, str(file), under))
        except StoreRefused as error:
            what = f"file {under}/{file.name}" if under else f"file {file.name}"
            self._leave_out(run, what, error)

    def set_status(self, run: Run, status: str, ended: float | None = None) -> None:
        """Set a run's status if it differs. The end is at `ended`, or now."""
        if run.status == status:
            return
        end = None if ended is None else _milliseconds(ended)
        if status == "RUNNING":
            self._ask(lambda client: client.update_run(run.id, status=status))
        else:
            self._ask(lambda client: client.set_terminated(run.id, status, end))
        run.status = status

    def delete_run(self, run: Run) -> None:
        """Delete a run. MLflow can restore it."""
        self._ask(lambda client: client.delete_run(run.id))

    def delete_experiment(self) -> None:
        """Delete the experiment. MLflow can restore it."""
        self._ask(lambda client: client.delete_experiment(self.experiment))

    def _ask(self, call: Callable[[Any], _Found]) -> _Found:
        """Make a request by MLflow's client. Its exceptions become errors of one line."""
        try:
            found = call(self._client)
        except Exception as error:  # drivers and servers raise various exceptions
            raise told(error, self.uri) from error
        self.answers += 1
        return found

    def _log(self, run: Run, kind: str, groups: Iterable[Sequence[Any]]) -> None:
        """Log metrics, params or tags, key by key if the store rejects them together.

        Args:
            run: whose.
            kind: "metrics", "params" or "tags".
            groups: entities that must be in one request.
        """
        for request in _requests(kind, groups):
            wanted = [one for one in request if (run.id, _what(kind, one)) not in self._left_out]
            keys = list(dict.fromkeys(entity.key for entity in wanted))
            try:
                if wanted:
                    self._ask(lambda client: client.log_batch(run.id, **{kind: wanted}))  # noqa: B023
            except StoreRefused as error:
                if len(keys) == 1:
                    self._leave_out(run, _what(kind, wanted[0]), error)
                    continue
                for key in keys:
                    self._log(run, kind, [[entity for entity in wanted if entity.key == key]])
            else:
                for entity in wanted:
                    run.note(kind, entity)

    def _leave_out(self, run: Run, what: str, error: UserError) -> None:
        """Leave out what the store rejects, as long as it accepts a tag.

        Raises:
            UserError: the store accepts nothing for the run.
        """
        name = run.tags.get(NAME, run.id)
        self._ask(lambda client: client.set_tag(run.id, NAME, name))  # unchanged, as a test
        self._left_out.add((run.id, what))
        said = without_secrets(str(error.__cause__ or error).split("\n")[0], self.uri)
        if not self.refused:  # one line; others are reported at the end
            _LOG.warning(
                "MLflow does not take the %s (%s): it is in the report, and the rest is shown",
                what,
                printable(said, 300),
            )
        self.refused.setdefault(what, printable(said, 300))


def store_of(workdir: Path, uri: str | None) -> MlflowStore:
    """Return the store of a URI, or of a work directory's runs."""
    address = tracking_uri(workdir, uri)
    return MlflowStore(address, workdir if address == own_uri(workdir) else None)


def check_store(workdir: Path, uri: str | None) -> None:
    """Check whether a store can be used, before anything is created. It may be unavailable.

    Raises:
        UserError: it cannot be used.
    """
    with suppress(StoreUnavailable):
        store_of(workdir, uri).check()


def connect(uri: str) -> Any:
    """Return MLflow's client for a store."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes two seconds, and reads the environment

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks as errors
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return MlflowClient(uri)


def as_metrics(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the finite figures with their names in the store."""
    return {spelled(key): float(value) for key, value in figures.items() if math.isfinite(value)}


def _as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with their spelling in the store."""
    said = {
        spelled(key): spelled(value, RUN if key == NAME else TAG) for key, value in tags.items()
    }
    if said.get(NAME) != tags.get(NAME):
        said[TRUE_NAME] = spelled(tags[NAME], TAG)  # such as of a variant with a long name
    return said


def _true_names(names: Iterable[str]) -> dict[str, str]:
    """Return tags with the true names of respelled names, by their hashes."""
    return {
        f"{TRUE_NAME}.{other.rpartition('--')[2]}": name for name, other in respelled(names).items()
    }


def _what(kind: str, entity: Any) -> str:
    return f"{kind.removesuffix('s')} {entity.key}"


def _requests(kind: str, groups: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    """Yield the entities of each request. No group is split."""
    request: list[Any] = []
    size = 0
    for group in groups:
        # A few bytes more than a metric, param or tag takes of a request.
        more = sum(len(json.dumps([one.key, str(one.value)])) + 100 for one in group)
        if request and (len(request) + len(group) > _MOST[kind] or size + more > _LARGEST):
            yield request
            request, size = [], 0
        request.extend(group)
        size += more
    if request:
        yield request


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
