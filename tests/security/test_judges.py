"""Malformed replies of judges, answers of models and people, and benchmarks' own files."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.benchmarks.hallusionbench import judge as hallusionbench_judge
from chip_core.evaluation.benchmarks.llava_bench import score as llava_bench
from chip_core.evaluation.benchmarks.mmmu.score import parse_options
from chip_core.evaluation.benchmarks.objhal import judge as objhal_judge
from chip_core.evaluation.judge import EndpointJudge, ReplyCache
from chip_core.evaluation.judge import endpoint as endpoints
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.reading import read_json, read_objects
from chip_core.evaluation.scorer import JudgeRequest
from chip_core.evaluation.text import reply_ratings
from chip_core.utils.errors import TrialError, UserError
from orchestrator.human_eval.replies import REPLIES_FORMAT, find_sheet_key, read_replies

from ..chip_core.evaluation.judge.server import BatchEndpoints, Handler, run_judge_server
from . import refusals

KIND = "judge replies"
GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "j",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "1"}}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def make_completion(content: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {**GOOD, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


BODIES: dict[str, Any] = {
    "nothing": b"",
    "text": b"hello",
    "HTML": b"<html><script>alert(1)</script></html>",
    "half of it": json.dumps(GOOD).encode()[:60],
    "not UTF-8": b'{"choices": "\xff"}',
    "a list": [],
    "a number": 5,
    "null": None,
    "an empty object": {},
    "no choices": {**GOOD, "choices": None},
    "empty choices": {**GOOD, "choices": []},
    "choices of numbers": {**GOOD, "choices": [1]},
    "choices of text": {**GOOD, "choices": "abc"},
    "no message": {**GOOD, "choices": [{"index": 0}]},
    "a message of text": {**GOOD, "choices": [{"message": "hi"}]},
    "a content of numbers": make_completion(5),
    "a content of lists": make_completion(["a"]),
    "a content of objects": make_completion({"a": 1}),
    "a content too long": make_completion("x" * (endpoints.MAX_REPLY_LENGTH + 1)),
    "deep": b"[" * 100_000,
    "5,000 digits": b'{"choices": ' + b"9" * 5000 + b"}",
}


def ask_judge(cache: Path, url: str, **changes: Any) -> list[str | None]:
    settings_ = JudgeConfig(
        model="j", base_url=url, api_key_env=None, retries=0, timeout=10, concurrency=1, **changes
    )
    request = JudgeRequest(
        item="1", messages=({"role": "user", "content": "?"},), temperature=0.0, max_tokens=8
    )
    return EndpointJudge(settings_, ReplyCache(cache)).ask([request])


@pytest.mark.parametrize("name", BODIES)
def test_bodies_by_hand(tmp_path: Path, name: str) -> None:
    """No reply is made of what is none; the trial fails with the reason and nothing is kept."""

    def answer(handler: Handler, number: int, body: dict[str, Any]) -> None:
        handler.send(BODIES[name])

    with run_judge_server(answer) as server:
        said = refusals.expect_refusal(KIND, lambda: ask_judge(tmp_path, server.url), TrialError)
    assert "no call was answered" in said
    assert not (tmp_path / "replies.jsonl").exists()


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("place", ["row", "file", "batch"])
def test_bodies_of_batches(tmp_path: Path, name: str, place: str) -> None:
    """In a row's place, a file's or a batch's: the same."""
    body = BODIES[name]
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body

    def spoilt(handler: Handler) -> None:
        of_file = handler.path.endswith("/content")
        if place != "row" and of_file == (place == "file"):
            handler.send(body)
        else:
            BatchEndpoints.get(handler.server.batches, handler)

    with run_judge_server(lambda handler, number, asked_: None) as server:
        server.batches.row = lambda number, asked_: (200, text)
        server.batches.get = spoilt  # type: ignore[method-assign]
        said = refusals.expect_refusal(
            KIND, lambda: ask_judge(tmp_path, server.url, mode="batch", poll=0.02), TrialError
        )
    assert "no call was answered" in said or "not a batch" in said
    assert not (tmp_path / "replies.jsonl").exists()


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 418, 500, 503])
def test_an_error_status_is_refused_in_one_line(tmp_path: Path, status: int) -> None:
    def answer(handler: Handler, number: int, body: dict[str, Any]) -> None:
        handler.send({"error": "\x1b[31m" * 50}, status, {"Location": "file:///etc/passwd"})

    with run_judge_server(answer) as server:
        refusals.expect_refusal(KIND, lambda: ask_judge(tmp_path, server.url), TrialError)


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": {"total_tokens": -(10**9)}},
        {"usage": {"total_tokens": 10**30}},
        {"usage": {"total_tokens": "many"}},
        {"usage": {"total_tokens": True}},
        {"usage": []},
        {"model": "\ud800" * 500},
        {"model": None},
        {"model": {"a": 1}},
    ],
)
def test_what_stands_beside_a_reply_is_bounded(tmp_path: Path, changes: dict[str, Any]) -> None:
    def answer(handler: Handler, number: int, body: dict[str, Any]) -> None:
        handler.send({**make_completion("half \ud800 a pair"), **changes})

    with run_judge_server(answer) as server:
        assert ask_judge(tmp_path, server.url) == ["half ? a pair"]
    (kept,) = read_objects(tmp_path / "replies.jsonl")
    assert kept["tokens"] == 0 or "usage" not in changes
    assert len(kept["returned"]) <= 200
    json.dumps(kept, ensure_ascii=False).encode()  # it can be written anywhere


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    reply=st.one_of(
        st.text(max_size=60),
        st.text(alphabet='[]{}",:`0129.eE+-naif \n\\u', max_size=60),
        st.sampled_from(["nan nan", "inf inf", "1e999 1", "9" * 5000 + " 1", "[" * 100_000]),
    )
)
def test_readers_take_any_text(reply: str) -> None:
    """A reply is read or it is none: no reader raises anything else.

    The official script of LLaVA-Bench takes "nan" for a number; what comes of it is refused as a
    whole (test_llava_bench.py).
    """
    with contextlib.suppress(objhal_judge.UnreadableReplyError):
        objhal_judge.read_reply_as_script(reply)
    try:
        objhal_judge.read_reply(reply)
    except objhal_judge.UnreadableReplyError as error:
        refusals.count_refusal(f"{KIND}, generated", str(error))
    assert len(llava_bench.parse_as_script(reply)) == 2
    pair = reply_ratings.read_pair(reply)
    assert pair is None or all(math.isfinite(rating) for rating in pair)
    assert reply_ratings.read_rating(reply) in (None, *range(7))
    assert hallusionbench_judge.parse_verdict(reply) in (None, 0, 1, 2)
    assert hallusionbench_judge.parse_agreement(reply) in (None, True, False)


ROWS: dict[str, bytes] = {
    "not UTF-8": b'{"item": "\xff"}',
    "cut short": b'{"item": "1"}\n{"item": ',
    "deep": b"[" * 100_000,
    "5,000 digits": b'{"item": ' + b"9" * 5000 + b"}",
    "a list of numbers": b"[1, 2]",
    "a number": b"5",
    "two on a line": b'{"a": 1} {"b": 2}',
    "a pickle": b"cos\nsystem\n(S'touch pwned'\ntR.",
}


@pytest.mark.parametrize("name", ROWS)
def test_files_of_replies_and_answers(tmp_path: Path, name: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROWS[name])
    refusals.expect_refusal(KIND, lambda: ReplayJudge.from_file(file), UserError)
    refusals.expect_refusal("answers", lambda: read_objects(file), UserError)
    refusals.expect_program_refusal(
        "answers", tmp_path, "score", "pope", str(file), "--data", str(tmp_path)
    )
    assert not Path("pwned").exists()


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b"{", b"9" * 5000])
def test_benchmarks_own_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "annotations.json").write_bytes(content)
    refusals.expect_refusal(
        "benchmarks' files", lambda: read_json(tmp_path / "annotations.json"), UserError
    )


@pytest.mark.parametrize("options", ["[" * 100_000, "__import__('os').system('touch pwned')", "{"])
def test_options_that_are_written_as_python(options: str) -> None:
    refusals.expect_refusal("benchmarks' files", lambda: parse_options(options), UserError)
    assert not Path("pwned").exists()


SHEET: dict[str, Any] = {
    "format": REPLIES_FORMAT, "export": "abc", "sheet": 1, "annotator": "a", "choices": ["a"]
}  # fmt: skip
SHEETS: dict[str, bytes | dict[str, Any]] = {
    "nothing": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"format": "\xff"}',
    "another format": {"format": "other"},
    "no choices": {"choices": None},
    "choices of others": {"choices": ["<script>"]},
    "choices of lists": {"choices": [["a"]]},
    "a sheet of infinity": {"sheet": float("inf")},
    "a sheet of text": {"sheet": "one"},
    "an export that climbs": {"export": "../../../secret"},
    "an absolute export": {"export": "/etc/passwd"},
    "an export of a null byte": {"export": "\0"},
    "an export no file can be": {"export": "e" * 5000},
}


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_of_people(tmp_path: Path, name: str) -> None:
    changed = SHEETS[name]
    text = changed if isinstance(changed, bytes) else json.dumps({**SHEET, **changed}).encode()
    (tmp_path / "sheet.json").write_bytes(text)
    refusals.expect_refusal("sheets", lambda: read_replies([tmp_path / "sheet.json"]), UserError)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{}", '{"export": "abc"}'])
def test_keys_of_sheets(tmp_path: Path, text: str) -> None:
    (tmp_path / "abc.json").write_text(text)
    files = [tmp_path / "sheet.json"]
    refusals.expect_refusal(
        "sheets", lambda: find_sheet_key(tmp_path, None, "abc", files), UserError
    )
