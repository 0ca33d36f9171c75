"""A judge whose replies were collected before: read from a file, found by item."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from chip_core.evaluation.reading import first_of, read_objects
from chip_core.evaluation.scorer import JudgeRequest

#: What names the item of a row.
ITEM_NAMES = ("item", "image_id", "question_id", "id")


class ReplayJudge:
    """Replies of a file; an item that is asked again gets its next reply, then its last again."""

    model = "replay"

    def __init__(self, replies: Sequence[tuple[str, str | None]]) -> None:
        self._replies: dict[str, list[str | None]] = defaultdict(list)
        for item, reply in replies:
            self._replies[item].append(reply)

    @classmethod
    def from_file(cls, path: Path) -> ReplayJudge:
        """Read rows of an item (`item`, `image_id`, `question_id` or `id`) and its `reply`.

        Raises:
            UserError: the file is not of that form.
        """
        replies = []
        for number, row in enumerate(read_objects(path), start=1):
            reply = first_of(row, ("reply",), path, number)
            item = str(first_of(row, ITEM_NAMES, path, number))
            replies.append((item, reply if isinstance(reply, str) else None))
        return cls(replies)

    def ask(self, requests: Sequence[JudgeRequest]) -> Sequence[str | None]:
        """Return the reply kept for each request; None where there is none."""
        asked: Counter[str] = Counter()
        found: list[str | None] = []
        for request in requests:
            kept = self._replies.get(request.item, [])
            found.append(kept[min(asked[request.item], len(kept) - 1)] if kept else None)
            asked[request.item] += 1
        return found
