"""A judge behind an OpenAI-compatible endpoint.

Every reply is stored (cache.py) and no call is paid for twice. A failed call is repeated a bounded
number of times, with growing pauses or after the time that the endpoint asks for; then it counts
as failed, and the protocol defines what that means for the figures. If every call fails, or the key
or the model is refused, the trial fails instead, because that is no judgement of its answers.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chip_core.config.benchmark import JudgeConfig
from chip_core.evaluation.judge.batch import BatchCall, Batches, BatchFailedError
from chip_core.evaluation.judge.cache import Reply, ReplyCache, request_key
from chip_core.evaluation.judge.limits import EndpointLimits, estimate_call_tokens
from chip_core.evaluation.scorer import JudgeRequest
from chip_core.evaluation.unreadable import truncate
from chip_core.utils.errors import TrialError

_MAX_BODY_ATTEMPTS = 3  # attempts if a response is not a chat completion
MAX_REPLY_LENGTH = 1_000_000  # characters
_MAX_TOKENS = 10**9  # of one call: counts above that, or below 0, are ignored
_MAX_MESSAGE_LENGTH = 300  # characters shown of an endpoint's message
_KEY_PATTERN = re.compile(r"\S*\*{3,}\S*|\b(?:sk|pk|gsk|hf)[-_][\w-]{8,}|(?<=Bearer )\S+")
_MAX_FAILURES = 8  # consecutive failures after which the endpoint counts as unreachable


class EndpointJudge:
    """Sends requests to an endpoint, or answers them from the cache."""

    def __init__(
        self,
        settings: JudgeConfig,
        cache: ReplyCache,
        on_reply: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Set up the client.

        Args:
            settings: the judge.
            cache: replies that were paid for.
            on_reply: called with (replies so far, requests in all).

        Raises:
            TrialError: the package `openai` or the key is missing.
        """
        problem = find_endpoint_problem(settings)
        if problem is not None:
            raise TrialError(problem)
        import openai

        name = settings.api_key_env
        self.model = settings.model
        self.send = settings.send  # further keys of a request; recorded with the figures
        self.returned: set[str] = set()  # model names in the replies
        self.paid = 0  # calls made now that were answered
        address = settings.base_url or "OpenAI's endpoint"
        self._name = f"judge {settings.model} at {address}"  # for messages
        self._settings = settings
        self._cache = cache
        self._on_reply = on_reply
        self._key = None if name is None else os.environ[name]
        self._limits = EndpointLimits(cache.folder, settings)
        self._client = openai.OpenAI(
            base_url=settings.base_url or "https://api.openai.com/v1",  # not from the environment
            api_key=self._key or "none",
            timeout=settings.timeout,
            max_retries=settings.retries,
            # Every request counts towards the shared limits, including the client's retries.
            http_client=openai.DefaultHttpxClient(
                event_hooks={"request": [self._on_request], "response": [self._on_response]}
            ),
        )
        self._lock = threading.Lock()
        self._in_flight = 0
        self._consecutive_failures = 0
        self._last_failure = ""
        self._stop_reason: str | None = None  # why no further call is made

    def ask(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        """Return the raw reply to each request; None if the call failed for good.

        Raises:
            TrialError: the endpoint refuses the key or the model, the budget is spent, or no call
                succeeded.
        """
        if self._settings.mode == "batch":
            replies = self._ask_in_batches(requests)
        else:
            replies = self._ask_live(requests)
        if self._stop_reason is not None:
            raise TrialError(self._stop_reason)
        if requests and all(reply is None for reply in replies):
            raise TrialError(f"{self._name}: no call was answered{self._last_failure}")
        return replies

    def _ask_live(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        done = 0

        def answer_request(request: JudgeRequest) -> str | None:
            nonlocal done
            reply = self._get_reply(request)
            with self._lock:
                done += 1
                self._on_reply(done, len(requests))
            return reply

        with ThreadPoolExecutor(max_workers=self._settings.concurrency) as pool:
            return list(pool.map(answer_request, requests))

    def _ask_in_batches(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        import openai

        keys: list[str] = []
        calls: dict[str, BatchCall] = {}
        for request in requests:
            parameters, messages = self._build_parameters(request), list(request.messages)
            keys.append(request_key(self.model, parameters, messages))
            calls[keys[-1]] = BatchCall(
                item=request.item, body={"messages": messages, **parameters}
            )
        cached = sum(self._cache.get(key) is not None for key in keys)

        def on_wait(done: int) -> None:
            self._on_reply(min(cached + done, len(requests)), len(requests))

        batches = Batches(
            self._client, self._cache, self._settings, parse_reply=_parse_reply, on_wait=on_wait
        )
        try:
            failed = batches.fill(calls, self._check_budget)
        except BatchFailedError as error:
            raise TrialError(f"{self._name}: the batch failed{self._quote_error(error)}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise TrialError(self._describe_refused_key(error)) from None
        except openai.NotFoundError as error:
            raise TrialError(
                f"{self._name}: has no batches (HTTP 404){self._quote_error(error)}: "
                "write judge.mode: live"
            ) from None
        except openai.APIStatusError as error:
            raise TrialError(
                f"{self._name}: refuses a batch (HTTP {error.status_code})"
                f"{self._quote_error(error)}"
            ) from None
        except openai.OpenAIError:
            raise TrialError(
                f"{self._name}: no connection; the next run waits for a batch that was created"
            ) from None
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            raise TrialError(
                f"{self._name}: an answer that is not a batch, or none of its files"
            ) from None
        finally:
            self.paid += batches.paid
        for key, row_error in failed.items():
            self._record_refusal(row_error, calls[key].body)
        replies = [self._cache.get(key) for key in keys]
        self.returned |= {reply.returned for reply in replies if reply is not None}
        self._on_reply(len(requests), len(requests))
        return [None if reply is None else reply.text for reply in replies]

    def _check_budget(self, count: int) -> None:
        """Raise if calls that are not answered yet exceed the budget."""
        budget = self._settings.budget
        calls, tokens = self._cache.get_usage(self.model)
        if budget.calls is not None and calls + count > budget.calls:
            raise TrialError(
                f"{self._name}: its budget of {budget.calls} calls, of which {calls} are spent, "
                f"does not cover the {count} of its batches: raise judge.budget.calls"
            )
        if budget.tokens is not None and tokens >= budget.tokens:
            raise TrialError(self._describe_token_budget())

    def _on_request(self, request: Any) -> None:
        if request.url.path.endswith("/chat/completions"):
            self._limits.wait()

    def _on_response(self, response: Any) -> None:
        if response.status_code in (429, 503):
            self._limits.pause(response.headers)

    def _get_reply(self, request: JudgeRequest) -> str | None:
        parameters = self._build_parameters(request)
        key = request_key(self.model, parameters, list(request.messages))
        with self._cache.lock_request(key):
            reply = self._cache.get(key)
            if reply is None and self._stop_reason is None:
                reply = self._call_within_budget(key, request, parameters)
        if reply is None:
            return None
        with self._lock:
            self.returned.add(reply.returned)
        return reply.text

    def _build_parameters(self, request: JudgeRequest) -> dict[str, Any]:
        settings = self._settings
        parameters: dict[str, Any] = {
            "temperature": request.temperature
            if settings.temperature is None
            else settings.temperature
        }
        max_tokens = request.max_tokens if settings.max_tokens is None else settings.max_tokens
        if max_tokens is not None:
            parameters["max_tokens"] = max_tokens
        merged = parameters | dict(settings.send)
        return {key: value for key, value in merged.items() if value is not None}

    def _call_within_budget(
        self, key: str, request: JudgeRequest, parameters: dict[str, Any]
    ) -> Reply | None:
        budget = self._settings.budget
        with self._lock:
            calls, tokens = self._cache.get_usage(self.model)
            if budget.calls is not None and calls + self._in_flight >= budget.calls:
                self._stop_reason = (
                    f"{self._name}: its budget of {budget.calls} calls is spent: "
                    "raise judge.budget.calls"
                )
            elif budget.tokens is not None and tokens >= budget.tokens:
                self._stop_reason = self._describe_token_budget()
            if self._stop_reason is not None:
                return None
            self._in_flight += 1
        reply = None
        try:
            with self._limits.slot(estimate_call_tokens(request, parameters)):
                reply = self._request_reply(request, parameters)
            if reply is not None:
                self._limits.record_usage(reply.tokens)
        finally:
            with self._lock:  # stored and no longer in flight in one step, so no call counts twice
                if reply is not None:
                    self._cache.put(key, self.model, request.item, reply)
                self._in_flight -= 1
        self._count_outcome(reply)
        return reply

    def _request_reply(self, request: JudgeRequest, parameters: dict[str, Any]) -> Reply | None:
        """Make one call, with the client's own retries."""
        import openai

        for _ in range(_MAX_BODY_ATTEMPTS):
            try:
                completion = self._client.chat.completions.create(
                    model=self.model,
                    messages=list(request.messages),  # type: ignore[arg-type]
                    extra_body=parameters,  # independent of the keys that the client knows
                )
                return _parse_reply(completion)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                self._stop_reason = self._describe_refused_key(error)
                return None
            except openai.NotFoundError as error:
                self._stop_reason = (
                    f"{self._name}: does not have this model, or the address is wrong (HTTP 404)"
                    f"{self._quote_error(error)}"
                )
                return None
            except openai.APIStatusError as error:
                self._record_refusal(error, parameters)
                return None
            except openai.APITimeoutError:
                self._record_failure(f"no answer within {self._settings.timeout:g} s")
                return None
            except openai.APIConnectionError:
                self._record_failure("no connection")
                return None
            except (
                *(openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError),
                RecursionError,  # JSON that is nested too deep
            ):
                self._record_failure("an answer that is not a chat completion")
        return None

    def _record_refusal(self, error: Any, parameters: Mapping[str, Any]) -> None:
        """Record why a call has no reply."""
        self._record_failure(f"HTTP {error.status_code}", self._quote_error(error))
        if key := _find_refused_key(error, parameters):
            # Every call would be refused: make no more.
            self._stop_reason = (
                f"{self._name}: refuses a key of the request (HTTP {error.status_code})"
                f"{self._quote_error(error)}: {_advise_on_key(key)}"
            )

    def _describe_refused_key(self, error: Any) -> str:
        return (
            f"{self._name}: refuses the key (HTTP {error.status_code}): fix what "
            f"{self._settings.api_key_env or 'judge.api_key_env'} holds"
        )

    def _describe_token_budget(self) -> str:
        limit = self._settings.budget.tokens
        return f"{self._name}: its budget of {limit} tokens is spent: raise judge.budget.tokens"

    def _record_failure(self, reason: str, message: str = "") -> None:
        self._last_failure = f" ({reason}){message}"

    def _quote_error(self, error: Any) -> str:
        """Return an endpoint's error message, without its key or anything like one."""
        message = error_message(error)
        if self._key:
            message = message.replace(self._key, "[key]")
            # Endpoints may show a part of it: sk-ab****yz.
            message = re.sub(rf"\S*{re.escape(self._key[:6])}\S*", "[key]", message)
        message = truncate(_KEY_PATTERN.sub("[key]", message), _MAX_MESSAGE_LENGTH)
        return f', and says "{message}"' if message else ""

    def _count_outcome(self, reply: Reply | None) -> None:
        with self._lock:
            self.paid += reply is not None
            self._consecutive_failures = 0 if reply is not None else self._consecutive_failures + 1
            if self._consecutive_failures >= _MAX_FAILURES and self._stop_reason is None:
                self._stop_reason = (
                    f"{self._name}: {_MAX_FAILURES} calls in a row failed"
                    f"{self._last_failure}; replies received so far are kept"
                )


def find_endpoint_problem(settings: JudgeConfig) -> str | None:
    """Return what a judge lacks on this machine, before it is called; None if nothing."""
    import importlib.util

    if importlib.util.find_spec("openai") is None:
        return "judges are called with the package openai: pip install 'chip-ablate[judge]'"
    name = settings.api_key_env
    if name is not None and not os.environ.get(name):
        return (
            f"judge {settings.model}: {name} is not set: put the key into it, or name another "
            "variable with judge.api_key_env (null if the endpoint needs none)"
        )
    return None


_UNKNOWN_KEY = re.compile(
    r"unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted|"
    r"extra inputs|deprecated|not allowed|invalid param"
)


def error_message(error: Any) -> str:
    """Return the message in the body of an error, on one line and printable."""
    body = error.body
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    text = body if isinstance(body, str) else "" if body is None else str(body)
    if text.lstrip().startswith("<"):
        return ""  # an HTML page of a proxy
    joined = " ".join(text[: 4 * _MAX_MESSAGE_LENGTH].split())
    return "".join(character for character in joined if character.isprintable())


def _find_refused_key(error: Any, parameters: Mapping[str, Any]) -> str | None:
    """Return the key of a request that an endpoint refuses; None if it names none."""
    if error.status_code not in (400, 422):
        return None
    param = getattr(error, "param", None)
    if param in parameters:
        return str(param)
    message = error_message(error).lower()
    if not _UNKNOWN_KEY.search(message):
        return None
    return next((key for key in parameters if re.search(rf"\b{re.escape(key)}\b", message)), None)


def _advise_on_key(key: str) -> str:
    """Return what to write in the study file."""
    if key == "max_tokens":
        return "write judge.send: {max_tokens: null, max_completion_tokens: 512}"
    return f"write judge.send: {{{key}: null}} to leave it out, or another value"


def _parse_reply(completion: Any) -> Reply:
    """Read the reply in a completion.

    Raises:
        ValueError: it is not a chat completion, or its reply is too long.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise ValueError("no choices")
    text = choices[0].message.content
    if text is not None and not isinstance(text, str):
        raise ValueError("the content is not text")
    if len(text or "") > MAX_REPLY_LENGTH:
        raise ValueError("the content is not a reply to what was asked: it is too long")
    usage = getattr(completion, "usage", None)
    tokens = getattr(usage, "total_tokens", None)
    returned = getattr(completion, "model", None)
    return Reply(
        text=_to_encodable(text or ""),
        returned=_to_encodable(returned[:200]) if isinstance(returned, str) else "unnamed",
        tokens=tokens if type(tokens) is int and 0 <= tokens < _MAX_TOKENS else 0,
    )


def _to_encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: JSON may hold half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
