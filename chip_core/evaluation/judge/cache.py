"""Store judges' replies, so that no call is paid for twice.

`replies.jsonl` is append-only and shared by all trials and processes of a work directory, under
the hash of (model, parameters, messages). A caller holds a lock meanwhile, one of a few thousand
by the hash, so that two trials that send the same request at the same time pay once.

A user's own file of replies collected elsewhere can replace a judge (`ReplayJudge`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.evaluation.reading import read_rows
from chip_core.evaluation.scorer import JudgeRequest
from chip_core.utils.errors import warn_once
from chip_core.utils.files import append_record, parse_checksummed

_LOCK_DIGITS = 3  # of the hash: 4096 locks, so that two calls seldom wait for each other


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The reply of an endpoint."""

    text: str
    returned: str  # the model's name in the reply
    tokens: int  # of question and reply, as counted by the endpoint; 0 if it reports none


def request_key(model: str, parameters: Mapping[str, Any], messages: Any) -> str:
    """Return the hash under which a reply is stored."""
    request = json.dumps([model, dict(parameters), messages], sort_keys=True)
    return hashlib.sha256(request.encode()).hexdigest()


class ReplyCache:
    """The replies of one folder."""

    def __init__(self, folder: Path) -> None:
        """Open it; create nothing before the first write."""
        self.folder = folder
        self._file = folder / "replies.jsonl"
        self._replies: dict[str, Reply] = {}
        self._usage: dict[str, tuple[int, int]] = {}  # model -> calls, tokens
        self._bytes_read = 0  # bytes read so far
        self._lock = threading.Lock()

    def get(self, key: str) -> Reply | None:
        """Return a reply, including one that another process has just written."""
        with self._lock:
            if key not in self._replies:
                self._read_new_records()
            return self._replies.get(key)

    def put(self, key: str, model: str, item: str, reply: Reply) -> None:
        """Store a reply; it is durable when this returns."""
        record = {
            "key": key,
            "model": model,
            "item": item,
            "reply": reply.text,
            "returned": reply.returned,
            "tokens": reply.tokens,
        }
        with self._lock:
            append_record(self._file, record)

    def get_usage(self, model: str) -> tuple[int, int]:
        """Return the numbers of paid calls of a model, and of their tokens."""
        with self._lock:
            self._read_new_records()
            return self._usage.get(model, (0, 0))

    @contextmanager
    def lock_request(self, key: str) -> Iterator[None]:
        """Hold a request's lock: others that send the same request wait."""
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / key[:_LOCK_DIGITS]).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read_new_records(self) -> None:
        """Read what was appended since the last read."""
        if not self._file.is_file():
            return
        with self._file.open("rb") as file:
            file.seek(self._bytes_read)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._bytes_read += len(complete)
        for line in complete.split(b"\n"):
            if line.strip():
                self._add_record(line)

    def _add_record(self, line: bytes) -> None:
        """Add a reply; a damaged one is requested again."""
        try:
            record = parse_checksummed(line)
            key, model = str(record["key"]), str(record["model"])
            reply = Reply(
                text=str(record["reply"]),
                returned=str(record["returned"]),
                tokens=int(record["tokens"]),
            )
        except (ValueError, KeyError, TypeError):
            warn_once(
                f"{self._file}: a reply has changed since it was written: it is requested again"
            )
            return
        self._replies.setdefault(key, reply)
        calls, tokens = self._usage.get(model, (0, 0))
        self._usage[model] = (calls + 1, tokens + reply.tokens)


#: The keys of a row that may hold the item.
ITEM_NAMES = ("item", "image_id", "question_id", "id")


class ReplayJudge:
    """Replies from a file; a repeated item gets its next reply, and the last one from then on."""

    model = "replay"

    def __init__(self, replies: Sequence[tuple[str, str | None]]) -> None:
        self._replies: dict[str, list[str | None]] = defaultdict(list)
        for item, reply in replies:
            self._replies[item].append(reply)

    @classmethod
    def from_file(cls, path: Path) -> ReplayJudge:
        """Read rows of an item (`item`, `image_id`, `question_id` or `id`) and its `reply`.

        Raises:
            UserError: the file does not have that form.
        """
        replies = [(str(row.get(*ITEM_NAMES)), row.get("reply")) for row in read_rows(path)]
        return cls([(item, reply if isinstance(reply, str) else None) for item, reply in replies])

    def ask(self, requests: Sequence[JudgeRequest]) -> Sequence[str | None]:
        """Return the stored reply to each request, or None."""
        counts: Counter[str] = Counter()
        answers: list[str | None] = []
        for request in requests:
            replies = self._replies.get(request.item, [])
            answers.append(
                replies[min(counts[request.item], len(replies) - 1)] if replies else None
            )
            counts[request.item] += 1
        return answers
