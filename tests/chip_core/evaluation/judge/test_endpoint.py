"""A judge behind a real server that fails, stalls, limits, lies and hangs up."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.judge import EndpointJudge, ReplyCache, find_endpoint_problem
from chip_core.evaluation.scorer import JudgeRequest
from chip_core.utils.errors import TrialError

from .server import KEY, Handler, JudgeServer, rate_question, rate_slowly, run_judge_server

Body = dict[str, Any]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def make_judge(server: JudgeServer, folder: Path, **settings: Any) -> EndpointJudge:
    given = {"model": "judge", "base_url": server.url, "api_key_env": "JUDGE_KEY", **settings}
    return EndpointJudge(JudgeConfig.model_validate(given), ReplyCache(folder / "judge"))


def make_requests(number: int = 4) -> list[JudgeRequest]:
    return [
        JudgeRequest(item=str(n), messages=({"role": "user", "content": "x" * n},), max_tokens=50)
        for n in range(number)
    ]


def test_replies_come_in_order_with_what_the_endpoint_called_itself(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        asked = make_judge(server, tmp_path)
        assert asked.ask(make_requests(9)) == [f"Rating: {n % 7}" for n in range(9)]
        assert asked.returned == {"judge-2026-01-01"}
        assert (asked.model, asked.paid) == ("judge", 9)
        assert server.calls[0].keys() == {"model", "messages", "temperature", "max_tokens"}
        assert {call["max_tokens"] for call in server.calls} == {50}
        assert set(server.keys) == {f"Bearer {KEY}"}


def test_settings_stand_in_place_of_the_scripts(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        make_judge(server, tmp_path, temperature=0.5, max_tokens=9).ask(make_requests(1))
        assert (server.calls[0]["temperature"], server.calls[0]["max_tokens"]) == (0.5, 9)


def test_what_goes_out_is_the_users_to_say(tmp_path: Path) -> None:
    """null leaves a key out, others are added or stand in its place; replies are kept apart."""
    send = {
        "max_tokens": None,
        "temperature": None,
        "max_completion_tokens": 512,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},  # no argument of the client's
    }
    with run_judge_server(rate_question) as server:
        make_judge(server, tmp_path).ask(make_requests(1))
        make_judge(server, tmp_path, send=send).ask(make_requests(1))
        make_judge(server, tmp_path, send=send).ask(make_requests(1))
        make_judge(server, tmp_path, send={"top_p": None}).ask(make_requests(1))  # says nothing new
        first, second = server.calls
        assert first.keys() == {"model", "messages", "temperature", "max_tokens"}
        assert second == {
            "model": "judge",
            "messages": first["messages"],
            "max_completion_tokens": 512,
            "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": False},
        }
        make_judge(server, tmp_path, send={"temperature": 0.7, "max_tokens": 9}).ask(
            make_requests(1)
        )
        assert (server.calls[2]["temperature"], server.calls[2]["max_tokens"]) == (0.7, 9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"send": {"model": "x"}}, "'model' cannot be set here: write judge.model"),
        ({"send": {"messages": []}}, "'messages' cannot be set here"),
        ({"send": {"stream": True}}, "replies are read whole"),
        ({"send": {"n": 2}}, "one reply is read"),
        ({"send": {"api_key": "x"}}, "'api_key' is the name of a secret"),
        ({"send": {"extra": [{"X-API-Key": "x"}]}}, "'X-API-Key' is the name of a secret"),
        ({"send": {"user": "sk-abcdefghijklmnop0123"}}, "'user' holds what looks like a key"),
        ({"send": {"a b": 1}}, "'a b' is not a key of a request"),
        ({"send": {"top_p": float("inf")}}, "finite number"),
        ({"send": {"stop": "x" * 20_001}}, "longer than 20,000 characters"),
        ({"send": {"temperature": None}, "temperature": 0.5}, "temperature is set twice"),
        ({"send": {"max_tokens": None}, "max_tokens": 5}, "max_tokens is set twice"),
    ],
)
def test_what_cannot_be_sent_is_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JudgeConfig(model="judge", **settings)


REFUSALS: dict[str, tuple[int, Any, str]] = {
    "a parameter, by name": (
        400,
        {"error": {"message": "Not here. Use another.", "param": "max_tokens", "code": "x"}},
        r'refuses a key of the request \(HTTP 400\), and says "Not here. Use another.": write '
        r"judge.send: {max_tokens: null, max_completion_tokens: 512}",
    ),
    "a value, in words alone": (
        400,
        {"error": {"message": "'temperature' does not support 0.0 with this model."}},
        r"'temperature' does not support 0.0 with this model.\": write judge.send: "
        r"{temperature: null} to leave it out, or another value",
    ),
    "another server's form": (
        422,
        {"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]},
        r"HTTP 422.*Extra inputs are not permitted.*max_completion_tokens",
    ),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_key_that_is_refused_stops_at_once_in_the_endpoints_own_words(
    kind: str, tmp_path: Path
) -> None:
    status, body, said = REFUSALS[kind]

    def refuses(handler: Handler, number: int, _: Body) -> None:
        handler.send(body, status=status)

    with run_judge_server(refuses) as server:
        with pytest.raises(TrialError, match=said):
            make_judge(server, tmp_path, concurrency=1).ask(make_requests(20))
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    "words",
    [
        f"Bad thing with key {KEY} here",
        f"Incorrect key: {KEY[:8]}*****{KEY[-4:]} here",
        f"Authorization: Bearer {KEY} here",
        "other key sk-proj-0123456789abcdef here",
        f"\x1b[31m{KEY}\n\n{'long ' * 200}",
    ],
)
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_an_endpoints_words_tell_no_key(status: int, words: str, tmp_path: Path) -> None:
    def refuses(handler: Handler, number: int, _: Body) -> None:
        handler.send({"error": {"message": words}}, status=status)

    with run_judge_server(refuses) as server, pytest.raises(TrialError) as raised:
        make_judge(server, tmp_path, retries=0).ask(make_requests(1))
    said = str(raised.value)
    assert KEY[:8] not in said and KEY[-4:] not in said and "sk-proj" not in said
    assert said.isprintable() and len(said) < 600
    if status != 403:  # of which a key is the reason
        assert "and says" in said


def test_no_reply_is_paid_for_twice(tmp_path: Path) -> None:
    """Over two judges, as two trials have; and within one."""
    with run_judge_server(rate_question) as server:
        first = make_judge(server, tmp_path).ask([*make_requests(), *make_requests()])
        assert len(server.calls) == 4
        second = make_judge(server, tmp_path)
        assert second.ask(make_requests()) == first[:4] == first[4:]
        assert (len(server.calls), second.paid) == (4, 0)
        assert second.returned == {"judge-2026-01-01"}  # also of kept replies
        # another parameter, another model: another question
        make_judge(server, tmp_path, temperature=1.0).ask(make_requests(1))
        make_judge(server, tmp_path, model="other").ask(make_requests(1))
        assert len(server.calls) == 6


def ask_requests(url: str, folder: str) -> list[str | None]:
    settings = JudgeConfig(model="judge", base_url=url, api_key_env="JUDGE_KEY")
    return EndpointJudge(settings, ReplyCache(Path(folder) / "judge")).ask(make_requests(12))


def test_two_processes_that_ask_the_same_at_once_pay_once(tmp_path: Path) -> None:
    with run_judge_server(rate_slowly(0.1)) as server:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            found = pool.starmap(ask_requests, [(server.url, str(tmp_path))] * 2)
        assert found[0] == found[1]
        assert len(server.calls) == 12


def test_a_server_that_fails_is_asked_again(tmp_path: Path) -> None:
    def fails_twice(handler: Handler, number: int, body: Body) -> None:
        if number < 2:
            handler.send({"error": {"message": f"boom {KEY}"}}, status=500)
        else:
            rate_question(handler, number, body)

    with run_judge_server(fails_twice) as server:
        assert make_judge(server, tmp_path, concurrency=1).ask(make_requests(2)) == [
            "Rating: 0",
            "Rating: 1",
        ]
        assert len(server.calls) == 4


def test_a_server_that_stalls_is_left_after_its_timeout(tmp_path: Path) -> None:
    def stalls_once(handler: Handler, number: int, body: Body) -> None:
        if number == 0:
            handler.stall(30)
        else:
            rate_question(handler, number, body)

    with run_judge_server(stalls_once) as server:
        began = time.perf_counter()
        assert make_judge(server, tmp_path, timeout=0.3, concurrency=1).ask(make_requests(1)) == [
            "Rating: 0"
        ]
        assert time.perf_counter() - began < 10
        assert len(server.calls) == 2


def test_a_server_that_limits_is_waited_for(tmp_path: Path) -> None:
    said: list[float] = []

    def limits_once(handler: Handler, number: int, body: Body) -> None:
        said.append(time.perf_counter())
        if number == 0:
            error = {"error": {"message": "slow down", "type": "rate_limit"}}
            handler.send(error, status=429, headers={"Retry-After": "0.7"})
        else:
            rate_question(handler, number, body)

    with run_judge_server(limits_once) as server:
        assert make_judge(server, tmp_path, concurrency=1).ask(make_requests(1)) == ["Rating: 0"]
        assert said[1] - said[0] >= 0.7


LIES: dict[str, Callable[[Handler], None]] = {
    "no JSON": lambda handler: handler.send(b"<html>Rating: 6</html>"),
    "a list": lambda handler: handler.send(b"[1, 2]"),
    "no choices": lambda handler: handler.send({"id": "1", "choices": []}),
    "an error as a reply": lambda handler: handler.send({"error": {"message": "busy"}}),
    "content of another kind": lambda handler: handler.send(
        {"choices": [{"message": {"role": "assistant", "content": {"a": 1}}}]}
    ),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_what_is_no_completion_is_asked_again_and_never_kept(lie: str, tmp_path: Path) -> None:
    def lies_once(handler: Handler, number: int, body: Body) -> None:
        if number == 0:
            LIES[lie](handler)
        else:
            rate_question(handler, number, body)

    with run_judge_server(lies_once) as server:
        assert make_judge(server, tmp_path, concurrency=1).ask(make_requests(1)) == ["Rating: 0"]
        assert len(server.calls) == 2


def test_an_empty_reply_and_another_model_are_replies(tmp_path: Path) -> None:
    """What they count is the protocol's to say; they were paid for and are kept."""

    def evades(handler: Handler, number: int, body: Body) -> None:
        handler.reply(None if number == 0 else "", model="another-model")

    with run_judge_server(evades) as server:
        asked = make_judge(server, tmp_path, concurrency=1)
        assert asked.ask(make_requests(2)) == ["", ""]
        assert asked.returned == {"another-model"}
        assert make_judge(server, tmp_path).ask(make_requests(2)) == ["", ""]
        assert len(server.calls) == 2


def test_a_connection_that_is_dropped_is_made_again(tmp_path: Path) -> None:
    def hangs_up_twice(handler: Handler, number: int, body: Body) -> None:
        if number < 2:
            handler.drop_connection()
        else:
            rate_question(handler, number, body)

    with run_judge_server(hangs_up_twice) as server:
        assert make_judge(server, tmp_path, concurrency=1).ask(make_requests(1)) == ["Rating: 0"]
        assert len(server.calls) == 3


def test_a_call_that_fails_for_good_is_none_and_the_others_are_kept(tmp_path: Path) -> None:
    def never_that_one(handler: Handler, number: int, body: Body) -> None:
        if body["messages"][0]["content"] == "x":
            handler.send({"error": {"message": "filtered"}}, status=400)
        else:
            rate_question(handler, number, body)

    with run_judge_server(never_that_one) as server:
        found = make_judge(server, tmp_path, retries=1).ask(make_requests(4))
        assert found == ["Rating: 0", None, "Rating: 2", "Rating: 3"]
        calls = len(server.calls)
        make_judge(server, tmp_path, retries=1).ask(make_requests(4))
        assert len(server.calls) == calls + 1  # the one alone


def test_an_endpoint_that_is_away_fails_the_trial_soon(tmp_path: Path) -> None:
    def down(handler: Handler, number: int, body: Body) -> None:
        handler.send({"error": {"message": "down"}}, status=503)

    with run_judge_server(down) as server:
        asked = make_judge(server, tmp_path, retries=0, concurrency=2)
        with pytest.raises(TrialError, match=r"8 calls in a row failed \(HTTP 503\)"):
            asked.ask(make_requests(100))
        assert len(server.calls) <= 8 + 2
        with pytest.raises(TrialError, match=r"no call was answered \(HTTP 503\)"):
            make_judge(server, tmp_path, retries=0).ask(make_requests(2))


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, r"refuses the key \(HTTP 401\)"), (403, "refuses"), (404, "does not have this model")],
)
def test_a_refusal_stops_at_once_and_tells_no_key(
    status: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(handler: Handler, number: int, body: Body) -> None:
        handler.send({"error": {"message": f"Incorrect API key: {KEY}"}}, status=status)

    with run_judge_server(refuses) as server, caplog.at_level(logging.DEBUG):
        asked = make_judge(server, tmp_path, concurrency=1)
        with pytest.raises(TrialError, match=said) as raised:
            asked.ask(make_requests(20))
        assert len(server.calls) == 1
    assert KEY not in str(raised.value)
    assert KEY not in repr(raised.value.__context__)
    assert KEY not in caplog.text
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_nothing_that_is_written_down_holds_the_key(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        asked = make_judge(server, tmp_path)
        asked.ask(make_requests())
        assert KEY not in asked._settings.model_dump_json()
    kept = (tmp_path / "judge" / "replies.jsonl").read_text()
    assert KEY not in kept
    records = [json.loads(line) for line in kept.splitlines()]
    assert {record["returned"] for record in records} == {"judge-2026-01-01"}
    assert {record["tokens"] for record in records} == {12}
    with pytest.raises(ValueError, match="holds a key or a query"):
        JudgeConfig(model="judge", base_url=f"https://user:{KEY}@example.org/v1")
    with pytest.raises(ValueError, match="is not an address"):
        JudgeConfig(model="judge", base_url="example.org")


def test_the_budget_bounds_what_is_paid_over_all_trials(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        make_judge(server, tmp_path, budget={"calls": 6}).ask(make_requests(4))
        with pytest.raises(TrialError, match="its budget of 6 calls is spent: raise judge.budget"):
            make_judge(server, tmp_path, budget={"calls": 6}, concurrency=1).ask(make_requests(20))
        assert len(server.calls) == 6
        # what was paid for is still there, and a larger budget goes on
        assert (
            make_judge(server, tmp_path, budget={"calls": 6}).ask(make_requests(6))[5]
            == "Rating: 5"
        )
        make_judge(server, tmp_path, budget={"calls": 20}).ask(make_requests(20))
        assert len(server.calls) == 20
        with pytest.raises(TrialError, match="its budget of 240 tokens is spent"):
            make_judge(server, tmp_path, budget={"tokens": 240}).ask(make_requests(21))


def test_a_reply_that_a_crash_cut_off_is_asked_for_again(tmp_path: Path) -> None:
    with run_judge_server(rate_question) as server:
        make_judge(server, tmp_path, concurrency=1).ask(make_requests(3))
        file = tmp_path / "judge" / "replies.jsonl"
        file.write_bytes(file.read_bytes()[:-20])
        assert make_judge(server, tmp_path).ask(make_requests(3)) == [
            "Rating: 0",
            "Rating: 1",
            "Rating: 2",
        ]
        assert len(server.calls) == 4
        assert len(file.read_text().splitlines()) == 3


def test_what_is_missing_is_known_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = JudgeConfig(model="judge", api_key_env="NO_SUCH_KEY")
    assert "NO_SUCH_KEY is not set" in (find_endpoint_problem(settings) or "")
    assert find_endpoint_problem(JudgeConfig(model="judge", api_key_env="JUDGE_KEY")) is None
    assert find_endpoint_problem(JudgeConfig(model="judge", api_key_env=None)) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'chip-ablate[judge]'" in (find_endpoint_problem(settings) or "")


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with run_judge_server(rate_question) as server:
        settings = JudgeConfig(model="judge", base_url=server.url, api_key_env="JUDGE_KEY")
        cache = ReplyCache(tmp_path)
        EndpointJudge(settings, cache, lambda *at: told.append(at)).ask(make_requests(3))
    assert told == [(1, 3), (2, 3), (3, 3)]
