"""A judge asked by batches: killed at every moment, failed, expired, shared, never paid twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.judge import EndpointJudge, ReplyCache
from chip_core.evaluation.judge import batch as batches
from chip_core.evaluation.scorer import JudgeRequest
from chip_core.utils.errors import TrialError

from .server import KEY, JudgeServer, make_completion, rate_question, rate_row, run_judge_server

ALL = [f"Rating: {n % 7}" for n in range(5)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def make_judge(
    server: JudgeServer,
    folder: Path,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> EndpointJudge:
    given = {"model": "judge", "base_url": server.url, "api_key_env": "JUDGE_KEY", "mode": "batch"}
    made = JudgeConfig.model_validate({**given, "poll": 0.02, **settings})
    return EndpointJudge(made, ReplyCache(folder), on_reply)


def make_requests(number: int = 5) -> list[JudgeRequest]:
    return [
        JudgeRequest(item=str(n), messages=({"role": "user", "content": "x" * n},), max_tokens=50)
        for n in range(number)
    ]


def list_open_batches(folder: Path) -> list[Path]:
    return list((folder / "batches").glob("*.json"))


def test_replies_of_a_batch_are_those_of_live_calls(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with run_judge_server(rate_question) as server:
        asked = make_judge(server, tmp_path, lambda *at: told.append(at))
        assert asked.ask([*make_requests(), *make_requests(2)]) == [*ALL, *ALL[:2]]
        assert (len(server.batches.made), server.batches.paid, asked.paid) == (1, 5, 5)
        assert asked.returned == {"judge-2026-01-01"} and told[-1] == (7, 7)
        # Kept as live ones are: no way of asking pays for them again.
        assert make_judge(server, tmp_path).ask(make_requests()) == ALL
        assert make_judge(server, tmp_path, mode="live").ask(make_requests()) == ALL
        assert len(server.batches.made) == 1 and not server.calls
        rows = [json.loads(line) for line in server.batches.files["file-0"].splitlines()]
        make_judge(server, tmp_path / "live", mode="live", concurrency=1).ask(make_requests())
        assert [row["body"] for row in rows] == server.calls
    assert not list_open_batches(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert sorted(record["item"] for record in records) == list("01234")
    assert {record["tokens"] for record in records} == {12}
    kept = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY not in kept


def _ask_all(server: JudgeServer, folder: Path) -> None:
    make_judge(server, folder).ask(make_requests())


@pytest.mark.parametrize("moment", ["file", "batch", "look", "content"])
def test_a_killed_run_goes_on_with_its_batch(moment: str, tmp_path: Path) -> None:
    """Killed when the file was uploaded, the batch made, it was waited for, or its replies read."""
    with run_judge_server(rate_question) as server:
        process = multiprocessing.get_context("fork").Process(
            target=_ask_all, args=(server, tmp_path)
        )

        killed: list[str] = []

        def kill(now: str) -> None:  # it waits for an answer, and so ends before there is one
            if now == moment and not killed:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                killed.append(now)

        server.batches.before = kill
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        server.batches.before = lambda now: None
        assert make_judge(server, tmp_path).ask(make_requests()) == ALL
        assert (len(server.batches.made), server.batches.paid) == (1, 5)
    assert not list_open_batches(tmp_path)


def test_a_stop_while_waiting_leaves_the_batch_to_the_next_run(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StoppedError

    with run_judge_server(rate_question) as server:
        with pytest.raises(StoppedError):
            make_judge(server, tmp_path, stop).ask(make_requests())
        assert len(list_open_batches(tmp_path)) == 1
        assert make_judge(server, tmp_path).ask(make_requests(7))[:5] == ALL
        assert [len(server.batches.made), server.batches.paid] == [2, 7]  # the two more alone


def test_two_that_ask_the_same_wait_for_one_batch(tmp_path: Path) -> None:
    found: list[list[str | None]] = []
    with run_judge_server(rate_question) as server:
        server.batches.looks = 20
        both = [
            threading.Thread(
                target=lambda: found.append(make_judge(server, tmp_path).ask(make_requests()))
            )
            for _ in range(2)
        ]
        for one in both:
            one.start()
        for one in both:
            one.join(60)
        assert found == [ALL, ALL]
        assert (len(server.batches.made), server.batches.paid) == (1, 5)


def test_rows_that_failed_are_asked_again_and_refused_ones_are_not(tmp_path: Path) -> None:
    def row(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        content = body["messages"][0]["content"]
        if content == "x":
            return 400, {"error": {"message": "filtered"}}
        if content == "xx" and number < 5:
            return 500, {"error": {"message": "boom"}}
        if content == "xxx" and number < 5:
            return 200, {"no": "completion"}
        return rate_row(number, body)

    with run_judge_server(rate_question) as server:
        server.batches.row = row
        assert make_judge(server, tmp_path).ask(make_requests()) == [ALL[0], None, *ALL[2:]]
        assert len(server.batches.made) == 2 and server.batches.paid == 7
        # and no more often than `retries` says
        server.batches.row = lambda number, body: (500, {"error": {"message": f"boom {KEY}"}})
        with pytest.raises(TrialError, match=r"no call was answered \(HTTP 500\)") as raised:
            make_judge(server, tmp_path / "other", retries=2).ask(make_requests())
        assert len(server.batches.made) == 2 + 3
    assert KEY not in str(raised.value)


def test_what_a_batch_did_not_answer_in_time_is_asked_again(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        server.batches.expires_after = 3
        assert make_judge(server, tmp_path).ask(make_requests()) == ALL
        assert (len(server.batches.made), server.batches.paid) == (2, 5)


def test_a_batch_that_is_unknown_or_broken_here_is_made_again(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StoppedError

    with run_judge_server(rate_question) as server:
        for spoil in ("endpoint", "record"):
            with pytest.raises(StoppedError):
                make_judge(server, tmp_path / spoil, stop).ask(make_requests())
            if spoil == "endpoint":
                server.batches.made.clear()
            else:
                list_open_batches(tmp_path / spoil)[0].write_text("{")
            assert make_judge(server, tmp_path / spoil).ask(make_requests()) == ALL
            assert not list_open_batches(tmp_path / spoil)


def test_a_batch_whose_replies_are_gone_is_made_again(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:

        def lose(moment: str) -> None:
            if moment == "content" and len(server.batches.made) == 1:
                server.batches.files.clear()

        server.batches.before = lose
        assert make_judge(server, tmp_path).ask(make_requests()) == ALL
        assert len(server.batches.made) == 2
        assert not list_open_batches(tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the whole": (
        {"ends": "failed", "errors": [{"message": f"Bad line 1, key {KEY}", "code": "x"}]},
        r'the batch failed, and says "Bad line 1, key \[key\]"',
    ),
    "a key of each row": (
        {"row": lambda number, body: (400, {"error": {"message": "no", "param": "max_tokens"}})},
        "refuses a key of the request.*max_completion_tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told(name: str, tmp_path: Path) -> None:
    changes, said = REFUSED[name]
    with run_judge_server(rate_question) as server:
        for key, value in changes.items():
            setattr(server.batches, key, value)
        with pytest.raises(TrialError, match=said):
            make_judge(server, tmp_path).ask(make_requests())
    assert not list_open_batches(tmp_path)


def test_an_endpoint_without_batches_is_told(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        server.batches.post = lambda handler: handler.send({}, status=404)  # type: ignore[method-assign]
        with pytest.raises(TrialError, match=r"no batches \(HTTP 404\).*: write judge.mode: live"):
            make_judge(server, tmp_path).ask(make_requests())


def test_a_batch_beyond_the_budget_is_not_made(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        make_judge(server, tmp_path, budget={"calls": 6}).ask(make_requests())
        with pytest.raises(TrialError, match="budget of 6 calls, of which 5 are spent, does not"):
            make_judge(server, tmp_path, budget={"calls": 6}).ask(make_requests(8))
        assert server.batches.paid == 5 and not list_open_batches(tmp_path)


def test_large_sets_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_ROWS", 2)
    with run_judge_server(rate_question) as server:
        server.batches.row = lambda number, body: (200, make_completion(f"{number}"))
        found = make_judge(server, tmp_path).ask(make_requests())
        assert sorted(map(str, found)) == list("01234")
        assert len(server.batches.made) == 3
