"""A judge whose replies are known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chip_core.evaluation.scorer import JudgeRequest


class FakeJudge:
    """Replies by item, None where no reply is known, and keeps its requests."""

    model = "fake"

    def __init__(self, replies: Mapping[str, str | None]) -> None:
        self.replies = replies
        self.requests: list[JudgeRequest] = []

    def ask(self, requests: Sequence[JudgeRequest]) -> Sequence[str | None]:
        self.requests += requests
        return [self.replies.get(request.item) for request in requests]
