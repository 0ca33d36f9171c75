"""Keep all trials of a work directory together within an endpoint's limits.

The state of an endpoint (its address and the judge's name) is in a small file beside the replies,
under a lock: when the next request and the next token may be sent, and until when the endpoint
asked for a pause. Requests are spread evenly, so that no minute exceeds the limits. A killed
process leaves nothing behind: nothing is reserved ahead, and the slots for concurrent calls are
locks, which the kernel releases.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.scorer import JudgeRequest

MAX_PAUSE = 600.0  # seconds; a longer Retry-After is ignored
_MAX_WAIT = 3600.0  # a later time was written before the clock was set back
_MINUTE = 60.0
_RECHECK_INTERVAL = 0.5  # seconds, at most: the endpoint may ask for a pause meanwhile
_POLL = 0.02  # seconds between two attempts to get a lock
CHARACTERS_PER_TOKEN = 4  # per token, as a rule of thumb


def hash_endpoint(settings: JudgeConfig) -> str:
    """Return a hash of a judge's address and name."""
    identity = json.dumps([settings.base_url, settings.model])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


class EndpointLimits:
    """The limits of one judge at one endpoint, shared through a folder."""

    def __init__(self, folder: Path, settings: JudgeConfig) -> None:
        """Set up; write nothing before the first request.

        Args:
            folder: the folder that all trials share.
            settings: the judge, with its limits.
        """
        self._limits = settings.limits
        self._file = folder / "limits" / f"{hash_endpoint(settings)}.json"
        self._expected = threading.local()

    @contextmanager
    def slot(self, tokens: int) -> Iterator[None]:
        """Hold one slot for a concurrent call; each of its requests counts as `tokens`."""
        self._expected.tokens = tokens
        if self._limits.concurrency is None:
            yield
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            for index in range(self._limits.concurrency):
                lock = FileLock(self._file.with_suffix(f".{index}"))
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    continue
                try:
                    yield
                finally:
                    lock.release()
                return
            time.sleep(_POLL)

    def wait(self) -> None:
        """Wait until a request may be sent, and count it."""
        while (seconds := self._take_slot()) > 0:
            time.sleep(min(seconds, _RECHECK_INTERVAL))

    def record_usage(self, tokens: int) -> None:
        """Count the tokens of a reply in place of the expected ones."""
        rate, expected = self._limits.tokens_per_minute, getattr(self._expected, "tokens", 0)
        if rate is not None and tokens and tokens != expected:
            with self._locked_state() as state:
                state["tokens"] += (tokens - expected) * _MINUTE / rate

    def pause(self, headers: Mapping[str, str]) -> None:
        """Pause all requests for as long as the endpoint's Retry-After says."""
        seconds = parse_retry_after(headers)
        if seconds is not None and 0 < seconds <= MAX_PAUSE:
            with self._locked_state() as state:
                state["pause"] = max(state["pause"], time.time() + seconds)

    def _take_slot(self) -> float:
        """Return how long to wait; 0: the request is counted."""
        limits = self._limits
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            # Most judges have no limits: nothing to count, and nothing to write.
            return (
                max(0.0, self._read_state()["pause"] - time.time()) if self._file.exists() else 0.0
            )
        with self._locked_state() as state:
            now = time.time()
            wait = max(state.values()) - now
            if wait > 0:
                return wait
            if limits.requests_per_minute is not None:
                state["requests"] = now + _MINUTE / limits.requests_per_minute
            if limits.tokens_per_minute is not None:
                expected = getattr(self._expected, "tokens", 0)
                state["tokens"] = now + expected * _MINUTE / limits.tokens_per_minute
            return 0.0

    @contextmanager
    def _locked_state(self) -> Iterator[dict[str, float]]:
        """Hold the shared state; changes to it are written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_suffix(".lock"), poll_interval=_POLL):
            state = self._read_state()
            before = dict(state)
            yield state
            if state != before:
                latest = time.time() + _MAX_WAIT
                state = {name: min(moment, latest) for name, moment in state.items()}
                # No fsync: a crash of the machine loses a pause at most.
                new_file = self._file.with_suffix(f".{os.getpid()}.new")
                new_file.write_text(json.dumps(state), encoding="ascii")
                new_file.replace(self._file)

    def _read_state(self) -> dict[str, float]:
        latest = time.time() + _MAX_WAIT
        try:
            stored = json.loads(self._file.read_bytes())
            moments = {name: float(stored[name]) for name in _STATE_KEYS}
        except (OSError, ValueError, KeyError, TypeError):
            return dict.fromkeys(_STATE_KEYS, 0.0)
        return {name: moment if moment <= latest else 0.0 for name, moment in moments.items()}


#: The times from which the next request may be sent, in seconds of the clock.
_STATE_KEYS = ("requests", "tokens", "pause")


#: Tokens of a picture of any size: the most that OpenAI's gpt-4o counts at high detail, 85 and 170
#: for each of 8 tiles (https://platform.openai.com/docs/guides/images-vision).
TOKENS_PER_PICTURE = 1445


def estimate_request_tokens(*requests: JudgeRequest) -> int:
    """Estimate the tokens of requests: their texts', and a constant for each picture."""
    characters = pictures = 0
    for message in (message for request in requests for message in request.messages):
        content = message.get("content", "")
        for part in content if isinstance(content, list) else [{"text": content}]:
            pictures += "image_url" in part
            characters += len(str(part.get("text", "")))
    return characters // CHARACTERS_PER_TOKEN + TOKENS_PER_PICTURE * pictures


def estimate_call_tokens(request: JudgeRequest, parameters: Mapping[str, Any]) -> int:
    """Estimate the most tokens that a call takes, before it is made."""
    max_tokens = parameters.get("max_tokens", parameters.get("max_completion_tokens"))
    return estimate_request_tokens(request) + (max_tokens if isinstance(max_tokens, int) else 0)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a response asks to wait; None if it asks for no wait."""
    value = headers.get("retry-after-ms")
    try:
        if value is not None:
            return float(value) / 1000
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            return float(value)
        except ValueError:
            return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
