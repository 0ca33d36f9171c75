"""Call a judge by batches: files of requests that an endpoint answers within a day, at lower cost.

The form is OpenAI's (https://platform.openai.com/docs/api-reference/batch): a file of requests is
uploaded, a batch is created from it and polled until it has ended, and its files of replies and
errors are read.

No reply is paid for twice. A batch is recorded beside the replies, in `batches/`, before it is
created (its file and its requests) and again with its id; the record is removed when its replies
are stored. So a process that starts after a kill, or needs the same replies meanwhile, waits for
that batch. If the process that created it was killed before the id was recorded, the batch is
found again by its file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.judge.cache import Reply, ReplyCache
from chip_core.evaluation.judge.limits import hash_endpoint
from chip_core.utils.errors import warn_once
from chip_core.utils.files import read_checksummed, write_checksummed

if TYPE_CHECKING:
    import openai

ENDPOINT_PATH: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MAX_ROWS = 50_000  # of a file, OpenAI's limit
MAX_BYTES = 150 * 2**20  # below OpenAI's 200 MB
_FINAL_STATUSES = {"completed", "expired", "cancelled", "failed"}
_STOP_CHECK_INTERVAL = 2.0  # seconds, at most, between two reports while a batch is awaited
_POLL = 0.02  # seconds between two attempts to get a lock
#: Status codes of rows that may succeed when they are sent again.
_RETRYABLE_STATUSES = {408, 409, 429}


@dataclass(frozen=True, kw_only=True)
class BatchCall:
    """One request of a batch."""

    item: str
    body: Mapping[str, Any]  # as in a live request


@dataclass(frozen=True, kw_only=True)
class BatchRowError:
    """The error of a row without a reply, in the form of the client's own errors."""

    status_code: int
    body: Any
    param: Any = None

    @property
    def is_retryable(self) -> bool:
        """Whether it may succeed next time."""
        return (
            self.status_code in _RETRYABLE_STATUSES
            or self.status_code >= 500
            or self.status_code < 400
        )


class BatchFailedError(Exception):
    """A batch failed as a whole; `body` is the endpoint's error."""

    def __init__(self, body: Any) -> None:
        super().__init__("the batch failed")
        self.body = body


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The stored record of a batch."""

    endpoint: str  # a hash of address and model
    file: str  # the endpoint's id of the uploaded file
    keys: Sequence[str]
    batch: str | None  # the endpoint's id; None: not received yet


class Batches:
    """The batches of one judge."""

    def __init__(
        self,
        client: openai.OpenAI,
        cache: ReplyCache,
        settings: JudgeConfig,
        *,
        parse_reply: Callable[[Any], Reply],
        on_wait: Callable[[int], None],
    ) -> None:
        """Set up; send nothing.

        Args:
            client: the endpoint's client.
            cache: stores the replies and the records of batches.
            settings: the judge.
            parse_reply: reads a chat completion; it raises a ValueError or the like if it is none.
            on_wait: called repeatedly with the number of replies so far; an exception ends the
                wait.
        """
        self.paid = 0  # replies that were stored
        self._lost_keys = set[str]()  # keys whose replies were gone at the endpoint
        self._replies_done = 0  # of the batch that is awaited
        self._client, self._cache, self._settings = client, cache, settings
        self._parse_reply, self._on_wait = parse_reply, on_wait
        self._folder = cache.folder / "batches"
        self._endpoint = hash_endpoint(settings)

    def fill(
        self, calls: Mapping[str, BatchCall], check_budget: Callable[[int], None]
    ) -> Mapping[str, BatchRowError]:
        """Store the replies to calls in the cache; return the errors of those that failed.

        Args:
            calls: by the key of their reply.
            check_budget: called with the number of calls that are open or about to be sent; it
                raises if that is too many.

        Raises:
            BatchFailedError: the endpoint refuses the batch.
            openai.OpenAIError: it cannot be reached, or refuses the request.
        """
        failed: dict[str, BatchRowError] = {}
        for _ in range(1 + self._settings.retries):
            missing = {
                key: call
                for key, call in calls.items()
                if self._cache.get(key) is None and (key not in failed or failed[key].is_retryable)
            }
            if not missing:
                break
            for path in self._send_calls(missing, check_budget):
                failed |= self._finish_batch(path, calls)
        return {key: error for key, error in failed.items() if self._cache.get(key) is None}

    def _send_calls(
        self, calls: Mapping[str, BatchCall], check_budget: Callable[[int], None]
    ) -> list[Path]:
        """Send the calls that are in no batch yet; return the records of all their batches."""
        with self._lock():
            open_records = dict(self._iter_records())
            pending_keys = {key for record in open_records.values() for key in record.keys}
            new_calls = {key: call for key, call in calls.items() if key not in pending_keys}
            if new_calls:
                check_budget(len(pending_keys) + len(new_calls))
            for keys, content in _build_files(new_calls, self._settings.model):
                uploaded = self._client.files.create(
                    file=("requests.jsonl", content), purpose="batch"
                )
                name = hashlib.sha256(uploaded.id.encode()).hexdigest()[:16]
                path = self._folder / f"{name}.json"
                record = _Record(endpoint=self._endpoint, file=uploaded.id, keys=keys, batch=None)
                write_checksummed(path, asdict(record))
                open_records[path] = record
                self._create_batch(path, record)
            paths = [
                path
                for path, open_record in open_records.items()
                if not calls.keys().isdisjoint(open_record.keys)
            ]
            for path in paths:
                if path.exists() and self._read_record(path).batch is None:
                    # its sender was killed
                    self._create_batch(path, self._read_record(path), search_first=True)
            return paths

    def _create_batch(self, path: Path, record: _Record, *, search_first: bool = False) -> None:
        """Create the batch of an uploaded file, which is paid for, and record its id.

        If it may have been created before, the endpoint's batches are searched first.
        """
        import openai

        for retries_left in range(self._settings.retries, -1, -1):
            try:
                existing = self._find_batch(record.file) if search_first else None
                batch = existing or self._client.with_options(max_retries=0).batches.create(
                    input_file_id=record.file, endpoint=ENDPOINT_PATH, completion_window="24h"
                )
                break
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError):
                search_first = True  # it may have been created
                if not retries_left:
                    raise
                self._wait(min(8.0, self._settings.poll))
            except openai.APIStatusError:
                path.unlink()  # refused: it was not created
                raise
        write_checksummed(path, {**asdict(record), "batch": batch.id})

    def _find_batch(self, file: str) -> Any:
        """Return the newest batch of an uploaded file, or None."""
        batches = self._client.batches.list(limit=100)
        return next((batch for batch in batches if batch.input_file_id == file), None)

    def _finish_batch(
        self, path: Path, calls: Mapping[str, BatchCall]
    ) -> Mapping[str, BatchRowError]:
        """Wait for a batch, store its replies, and return the errors of the other rows."""
        import openai

        try:
            record = self._read_record(path)
        except FileNotFoundError:
            return {}  # another trial has stored its replies
        assert record.batch is not None
        batch: Any = None
        while batch is None or batch.status not in _FINAL_STATUSES:
            if batch is not None:
                self._wait(self._settings.poll)
            try:
                batch = self._client.batches.retrieve(record.batch)
            except openai.NotFoundError:
                warn_once(f"batch {record.batch} is no longer known: its calls are sent again")
                path.unlink(missing_ok=True)
                return {}
            if not isinstance(batch.status, str):
                raise ValueError("it has no status")
            done = getattr(batch.request_counts, "completed", 0)
            self._replies_done = done if isinstance(done, int) else 0
            self._on_wait(self._replies_done)
            if not path.exists():
                return {}
        with self._lock():
            if not path.exists():
                return {}
            try:
                failed = self._store_replies(batch, record, calls)
            except openai.NotFoundError:
                path.unlink()
                if not self._lost_keys.isdisjoint(record.keys):
                    raise  # do not pay again and again at an endpoint that never has them
                self._lost_keys.update(record.keys)
                warn_once(f"batch {record.batch}: its replies are gone: its calls are sent again")
                return {}
            path.unlink()
        if batch.status == "failed":
            raise BatchFailedError(_find_first_error(batch))
        return failed

    def _store_replies(
        self, batch: Any, record: _Record, calls: Mapping[str, BatchCall]
    ) -> dict[str, BatchRowError]:
        """Store a batch's replies; a row in neither file has expired."""
        # Replies that another trial requested in this batch are stored, without the item's name.
        failed = {key: BatchRowError(status_code=408, body="expired") for key in record.keys}
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            for line in self._client.files.content(file).content.splitlines():
                key, result = self._parse_row(line)
                if key not in failed:
                    continue  # not one of our rows
                if isinstance(result, BatchRowError):
                    failed[key] = result
                    continue
                del failed[key]
                if self._cache.get(key) is None:
                    item = calls[key].item if key in calls else ""
                    self._cache.put(key, self._settings.model, item, result)
                    self.paid += 1
        return failed

    def _parse_row(self, line: bytes) -> tuple[str, Reply | BatchRowError]:
        """Return the key of a line of a file, and its reply or error."""
        from openai.types.chat import ChatCompletion

        try:
            row = json.loads(line)
            key, response = str(row["custom_id"]), row.get("response") or {}
            status, body = int(response.get("status_code") or 0), response.get("body")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return "", BatchRowError(status_code=0, body="not a row of a batch")
        if status == 200 and isinstance(body, dict):
            try:
                return key, self._parse_reply(ChatCompletion.construct(**body))
            except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
                return key, BatchRowError(
                    status_code=0, body="an answer that is not a chat completion"
                )
        error = row.get("error") or (body.get("error") if isinstance(body, dict) else body)
        param = error.get("param") if isinstance(error, dict) else None
        return key, BatchRowError(status_code=status, body=error, param=param)

    def _wait(self, seconds: float) -> None:
        """Sleep, and call `on_wait` meanwhile, which raises on a stop."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            time.sleep(min(remaining, _STOP_CHECK_INTERVAL))
            self._on_wait(self._replies_done)

    def _iter_records(self) -> Iterator[tuple[Path, _Record]]:
        """Yield the records of this endpoint's batches."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = self._read_record(path)
            except (OSError, ValueError, KeyError, TypeError):
                warn_once(
                    f"{path} has changed since it was written: the calls of its batch are sent "
                    "again"
                )
                path.unlink(missing_ok=True)
                continue
            if record.endpoint == self._endpoint:
                yield path, record

    def _read_record(self, path: Path) -> _Record:
        return _Record(**read_checksummed(path))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "lock", poll_interval=_POLL):
            yield


def _build_files(calls: Mapping[str, BatchCall], model: str) -> Iterator[tuple[list[str], bytes]]:
    """Yield files of requests within the size limits, each with the keys of its rows."""
    keys: list[str] = []
    lines: list[bytes] = []
    size = 0
    for key, call in calls.items():
        body = {"model": model, **call.body}
        row = {"custom_id": key, "method": "POST", "url": ENDPOINT_PATH, "body": body}
        line = json.dumps(row).encode() + b"\n"
        if keys and (len(keys) == MAX_ROWS or size + len(line) > MAX_BYTES):
            yield keys, b"".join(lines)
            keys, lines, size = [], [], 0
        keys.append(key)
        lines.append(line)
        size += len(line)
    if keys:
        yield keys, b"".join(lines)


def _find_first_error(batch: Any) -> Any:
    errors = getattr(getattr(batch, "errors", None), "data", None) or [None]
    return getattr(errors[0], "message", None)
