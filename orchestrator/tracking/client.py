"""Call MLflow: every request to a store goes through here.

Whatever goes wrong in a store is a `UserError` of one line here: `StoreUnavailable` where it may be
well again by itself, else `StoreRefused`. Nothing is written that the store has already.
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
from orchestrator.storage.download import artifacts_of
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

#: Where the curves of a run are among its metrics.
CURVE = "train/"
#: And what its checkpoints came to, by step.
CHECKPOINT = "checkpoint/"
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

    def note(self, kind: str, entity: Any) -> None:
        """Note a metric, param or tag that the store took."""
        getattr(self, kind)[entity.key] = entity.value
        if kind == "metrics":
            self.stamps[entity.key] = entity.timestamp
            self.last_step = max(self.last_step, entity.step)


class MlflowStore:
    """One experiment in an MLflow store."""

    def __init__(self, uri: str, workdir: Path | None = None) -> None:
        """Nothing is asked yet.

        Args:
            uri: the store's.
            workdir: the work directory that the store is in; None: it is elsewhere.
        """
        self.uri, self._workdir = uri, workdir
        self.address = shown_address(uri)  # without what opens the store
        self.experiment = ""  # its id
        self.answers = 0  # how often the store did what was asked
        self.refused: dict[str, str] = {}  # what it does not take, and why
        self._client: Any = None
        self._left_out: set[tuple[str, str]] = set()  # (run, what) that it does not take

    def open(self, experiment: str, *, make: bool = True) -> bool:
        """Connect; make the database and the experiment where they are missing, if told to.

        Returns:
            whether there is such an experiment.

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
                # A database without a server would put artifacts under the current folder.
                place = None if self._workdir is None else artifacts_of(self._workdir)
                self.experiment = self._client.create_experiment(name, place)
            if known is not None and make and not there:
                self._client.restore_experiment(self.experiment)
            if make and not self.experiment:
                raise ValueError("it has an experiment without an id")
            return make or there

        return self._ask(find)

    def check(self) -> None:
        """Find out whether the store can be used; a database that is not there is not made.

        Raises:
            UserError: it cannot be used.
        """
        if self.lacks_database:  # the work directory decides
            return

        def look(_: Any) -> None:
            check_reachable(self.uri)
            if not is_new(self.uri):
                connect(self.uri).get_experiment_by_name("Default")

        self._ask(look)

    @property
    def lacks_database(self) -> bool:
        """Whether it is the work directory's, and still to be made."""
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
        """Make a run; it is RUNNING, since `began` (seconds since 1970) or now."""
        start = None if began is None else _milliseconds(began)
        try:
            return self._ask(
                lambda client: _run(client.create_run(self.experiment, start, _as_tags(tags)))
            )
        except StoreRefused:  # it may be for one of the tags: then without that one
            run = self._ask(lambda client: _run(client.create_run(self.experiment, start)))
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
            [Metric(key, value, max(made, run.stamps.get(key, 0) + 1), 0)]
            for key, value in as_metrics(figures).items()
            if run.metrics.get(key) != value
        ]
        self._log(run, "metrics", changed)
        self.describe(run, _true_names(figures))

    def log_series(
        self, run: Run, series: Mapping[int, Mapping[str, float]], at: float | None = None
    ) -> None:
        """Log what a training's checkpoints came to, by step; what is there stays.

        Args:
            run: whose.
            series: step -> figures by name.
            at: when they were made, in seconds since 1970; now if not said.
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
        """Log a curve's points, those after the last step that the run has.

        A new attempt begins at step 1 again and comes to the same figures: nothing is doubled.
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
        """Attach a folder's files as artifacts; files of the same name are replaced."""
        try:
            self._ask(lambda client: client.log_artifacts(run.id, str(folder), under))
        except StoreRefused:  # for one of them, perhaps
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                steps = [*filter(None, [under]), *file.relative_to(folder).parent.parts]
                self.upload_file(run, file, "/".join(steps) or None)

    def upload_file(self, run: Run, file: Path, under: str | None = None) -> None:
        """Attach one file as an artifact; one of the same name is replaced."""
        try:
            self._ask(lambda client: client.log_artifact(run.id, str(file), under))
        except StoreRefused as error:
            what = f"file {under}/{file.name}" if under else f"file {file.name}"
            self._leave_out(run, what, error)

    def set_status(self, run: Run, status: str, ended: float | None = None) -> None:
        """Set a run's status, where it is another; it ended at `ended`, or now."""
        if run.status == status:
            return
        end = None if ended is None else _milliseconds(ended)
        if status == "RUNNING":
            self._ask(lambda client: client.update_run(run.id, status=status))
        else:
            self._ask(lambda client: client.set_terminated(run.id, status, end))
        run.status = status

    def delete_run(self, run: Run) -> None:
        """Delete a run, as MLflow does: it can be restored."""
        self._ask(lambda client: client.delete_run(run.id))

    def delete_experiment(self) -> None:
        """Delete the experiment in the same way."""
        self._ask(lambda client: client.delete_experiment(self.experiment))

    def _ask(self, call: Callable[[Any], _Found]) -> _Found:
        """Ask MLflow's client for something; a store's trouble becomes one line for the user."""
        try:
            found = call(self._client)
        except Exception as error:  # drivers of databases and servers raise what they like
            raise told(error, self.uri) from error
        self.answers += 1
        return found

    def _log(self, run: Run, kind: str, groups: Iterable[Sequence[Any]]) -> None:
        """Log metrics, params or tags; what the store does not take together, key by key.

        Args:
            run: whose.
            kind: which of the three.
            groups: those that one request has to hold stand together.
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
        """Do without what the store does not take, as long as it takes something else.

        Raises:
            UserError: it takes nothing of the run.
        """
        name = run.tags.get(NAME, run.id)
        self._ask(lambda client: client.set_tag(run.id, NAME, name))  # as it is
        self._left_out.add((run.id, what))
        said = without_secrets(str(error.__cause__ or error).split("\n")[0], self.uri)
        if not self.refused:  # one line; what else there is, is told at the end
            _LOG.warning(
                "MLflow does not take the %s (%s): it is in the report, and the rest is shown",
                what,
                printable(said, 300),
            )
        self.refused.setdefault(what, printable(said, 300))


def store_of(workdir: Path, uri: str | None) -> MlflowStore:
    """Return the store of a work directory's runs, or the one that is named."""
    address = tracking_uri(workdir, uri)
    return MlflowStore(address, workdir if address == own_uri(workdir) else None)


def check_store(workdir: Path, uri: str | None) -> None:
    """Find out whether a store can be used, before anything is made; one that is away may be.

    Raises:
        UserError: it cannot be used.
    """
    with suppress(StoreUnavailable):
        store_of(workdir, uri).check()


def connect(uri: str) -> Any:
    """Return MLflow's client of a store."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # two seconds, and it reads the environment

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks as errors
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return MlflowClient(uri)


def as_metrics(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are numbers, named as the store has them."""
    return {spelled(key): float(value) for key, value in figures.items() if math.isfinite(value)}


def _as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags as the store has them."""
    said = {
        spelled(key): spelled(value, RUN if key == NAME else TAG) for key, value in tags.items()
    }
    if said.get(NAME) != tags.get(NAME):
        said[TRUE_NAME] = spelled(tags[NAME], TAG)  # as of a study whose variant is told at length
    return said


def _true_names(names: Iterable[str]) -> dict[str, str]:
    """Return tags that say the true names of those that are spelled otherwise, by their marks."""
    return {
        f"{TRUE_NAME}.{other.rpartition('--')[2]}": name for name, other in respelled(names).items()
    }


def _what(kind: str, entity: Any) -> str:
    return f"{kind.removesuffix('s')} {entity.key}"


def _requests(kind: str, groups: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    """Yield what goes into one request each; no group is parted."""
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
