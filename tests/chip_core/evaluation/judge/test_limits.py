"""An endpoint's limits, kept by all who share a folder."""

from __future__ import annotations

import multiprocessing
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.judge import EndpointJudge, ReplyCache
from chip_core.evaluation.judge.limits import (
    TOKENS_PER_PICTURE,
    EndpointLimits,
    estimate_call_tokens,
    parse_retry_after,
)
from chip_core.evaluation.scorer import JudgeRequest

from .server import Handler, rate_question, run_judge_server


def ask_questions(
    url: str, folder: Path, words: str, number: int, **settings: Any
) -> list[str | None]:
    given = {"model": "judge", "base_url": url, "api_key_env": None, **settings}
    judge = EndpointJudge(JudgeConfig.model_validate(given), ReplyCache(folder))
    return judge.ask(
        [
            JudgeRequest(
                item=str(n),
                messages=({"role": "user", "content": f"{words} {n}"},),
                max_tokens=50,
            )
            for n in range(number)
        ]
    )


def ask_in_process(url: str, folder: str, words: str, limits: dict[str, Any]) -> None:
    ask_questions(url, Path(folder), words, 6, limits=limits)


def test_two_processes_keep_one_limit(tmp_path: Path) -> None:
    """12 requests at 600 a minute are 0.1 s apart; together 2 at a time are open."""
    times: list[float] = []
    open_now, most = 0, 0
    lock = threading.Lock()

    def slow(handler: Handler, number: int, body: dict[str, Any]) -> None:
        nonlocal open_now, most
        with lock:
            times.append(time.perf_counter())
            open_now += 1
            most = max(most, open_now)
        time.sleep(0.3)
        with lock:
            open_now -= 1
        rate_question(handler, number, body)

    limits = {"requests_per_minute": 600, "concurrency": 2}
    with run_judge_server(slow) as server, multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(ask_in_process, [(server.url, str(tmp_path), words, limits) for words in "ab"])
    assert len(times) == 12 and most == 2
    assert max(times) - min(times) >= 11 * 0.1 - 0.1  # the way to the server takes a moment


def test_who_limits_one_limits_all(tmp_path: Path) -> None:
    """The other judge, of another trial, waits for the Retry-After of the first's request."""
    times: list[float] = []
    limited = threading.Event()

    def limits_once(handler: Handler, number: int, body: dict[str, Any]) -> None:
        times.append(time.perf_counter())
        if number == 0:
            error = {"error": {"message": "slow down"}}
            handler.send(error, status=429, headers={"Retry-After": "0.8"})
            limited.set()
        else:
            rate_question(handler, number, body)

    with run_judge_server(limits_once) as server:
        first = threading.Thread(target=ask_questions, args=(server.url, tmp_path, "a", 1))
        first.start()
        limited.wait(10)
        while not list((tmp_path / "limits").glob("*.json")):
            time.sleep(0.01)
        assert ask_questions(server.url, tmp_path, "b", 1)[0] is not None
        first.join()
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.8


def make_limiter(folder: Path, **limits: Any) -> EndpointLimits:
    return EndpointLimits(folder, JudgeConfig.model_validate({"model": "j", "limits": limits}))


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr("chip_core.evaluation.judge.limits.time.time", lambda: self.now)
        monkeypatch.setattr("chip_core.evaluation.judge.limits.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_tokens_are_spread_and_counted_as_they_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    limits = make_limiter(tmp_path, tokens_per_minute=600)  # ten a second
    began = clock.now
    with limits.slot(100):
        limits.wait()
        assert clock.now == began  # nothing was used before
        limits.record_usage(40)
    with limits.slot(100):
        limits.wait()
        assert clock.now - began == pytest.approx(4)  # 40 tokens, not 100
        limits.record_usage(100)
    with make_limiter(tmp_path, tokens_per_minute=600).slot(1):  # another trial's
        limits.wait()
    assert clock.now - began == pytest.approx(14)


def test_a_minute_never_holds_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    limits = make_limiter(tmp_path, requests_per_minute=20)
    times = []
    for _ in range(50):
        limits.wait()
        times.append(clock.now)
    for start in times:
        assert sum(start <= at < start + 60 for at in times) <= 20


def test_a_wait_ends_whatever_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    limits = make_limiter(tmp_path, requests_per_minute=60)
    limits.wait()
    (file,) = (tmp_path / "limits").glob("*.json")
    for broken in (b"", b"[1]", b'{"requests": "x"}', b"\xff"):
        file.write_bytes(broken)
        before = clock.now
        limits.wait()
        assert clock.now == before
    clock.now -= 1e6  # the clock was set back
    limits.pause({"retry-after": "1e9"})  # longer than is waited for
    limits.pause({"retry-after": "-5"})
    before = clock.now
    limits.wait()
    assert clock.now - before <= 3600


def test_what_is_read_of_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_retry_after({}) is None
    assert parse_retry_after({"retry-after": "2.5"}) == 2.5
    assert parse_retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    at = formatdate(time.time() + 30, usegmt=True)
    assert parse_retry_after({"retry-after": at}) == pytest.approx(30, abs=2)
    assert parse_retry_after({"retry-after": "soon"}) is None
    request = JudgeRequest(item="1", messages=({"role": "user", "content": "x" * 400},))
    assert estimate_call_tokens(request, {"max_tokens": 50}) == 100 + 50
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 370_000}}
    parts = [picture, {"type": "text", "text": "x" * 400}]
    shown = JudgeRequest(item="1", messages=({"role": "user", "content": parts},))
    # An image counts as an image, not by the length of its base64 text.
    assert estimate_call_tokens(shown, {}) == 100 + TOKENS_PER_PICTURE
