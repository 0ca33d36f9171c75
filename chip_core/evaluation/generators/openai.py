"""Answers from an OpenAI-compatible server: vLLM, SGLang, `transformers serve`.

An arm's weights are named by their hash, so that no server confuses them with another arm's; the
model that an answer names is compared with the one requested.
"""

from __future__ import annotations

import base64
import io
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import GeneratorConfig
from chip_core.data.encodings import SpecialTokens
from chip_core.data.image_files import to_rgb
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    GenerationTiming,
    Generator,
    OnAnswers,
    ServerLostError,
)
from chip_core.evaluation.generators.delivery import Delivery, ServedModel
from chip_core.evaluation.generators.parity import hash_prompt
from chip_core.evaluation.inference.decoder import generation_settings
from chip_core.evaluation.judge.endpoint import error_message
from chip_core.evaluation.task import Decoding, Item, Picture, Response
from chip_core.utils.errors import TrialError

_MAX_MESSAGE_LENGTH = 300  # characters shown of a server's message


class OpenAIGenerator(Generator):
    """Requests chat completions from a server, several at a time."""

    def __init__(
        self,
        settings: GeneratorConfig,
        folder: Path,
        served: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> None:
        """Set up; send no request.

        Args:
            settings: of a generator 'openai'.
            folder: the attempt's folder, for the files of a served model while it is served.
            served: weights that the server was started with -> their name there.
            key: of a server that this process started; None: read it from the environment.

        Raises:
            TrialError: the key is not set.
        """
        import openai

        name, is_local = settings.api_key_env, key is not None
        if key is None and name is not None:
            key = os.environ.get(name)
        if name is not None and not key:
            raise TrialError(f"evaluation.generator.api_key_env: {name} is not set")
        assert settings.base_url is not None, "checked with the configuration"
        self._settings, self._key = settings, key
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=key or "none",
            timeout=settings.timeout,
            max_retries=settings.retries,
            # A proxy of the environment does not reach this machine's own addresses.
            http_client=openai.DefaultHttpxClient(trust_env=False) if is_local else None,
        )
        software = f"{settings.server} {settings.version}".removeprefix("other ")
        self.label = f"{software} at {settings.base_url}"
        self._delivery = Delivery(settings, self._client, folder, dict(served or {}), self.label)
        self.identity = {"generator": "openai", "server": software}

    def answer(
        self,
        items: Sequence[Item],
        model: AnsweringModel,
        decoding: Decoding,
        on_answers: OnAnswers,
    ) -> GenerationTiming:
        """Answer the items, at most `concurrency` at a time."""
        self._check_special_tokens(items, model)
        served = self._delivery.deliver(model)
        extra_body = request_keys(self._settings.server, model, decoding)
        timer, failures = _BusyTimer(), list[TrialError]()
        pictures = _DataUrlCache(2 * self._settings.concurrency)

        def ask(item: Item) -> Response | None:
            if failures:
                return None
            messages: list[Mapping[str, Any]] = [
                {"role": "user", "content": question_parts(item, pictures.get_url)}
            ]
            try:
                with timer:
                    return self._send_question(item, served, messages, extra_body)
            except TrialError as error:
                failures.append(error)
                return None

        pool = ThreadPoolExecutor(max_workers=self._settings.concurrency)
        try:
            pending = {pool.submit(ask, item): item for item in _group_by_picture(items)}
            for future in as_completed(pending):
                response = future.result()
                if response is not None:  # including requests under way when another one failed
                    on_answers([(pending[future], response)])
        finally:
            pool.shutdown(cancel_futures=True)
        if failures:
            raise next(
                (failure for failure in failures if isinstance(failure, ServerLostError)),
                failures[0],
            )
        return GenerationTiming(seconds=timer.seconds, wait_seconds=timer.wait_seconds)

    def close(self) -> None:
        """Unload what was loaded into the server."""
        self._delivery.close()
        self._client.close()

    def abandon(self) -> None:
        """Close the client of a server that is gone, without unloading."""
        self._client.close()

    def _check_special_tokens(self, items: Sequence[Item], model: AnsweringModel) -> None:
        """Refuse a question that a server would tokenize differently from transformers here."""
        special_tokens = SpecialTokens(model.processor)
        for item in items:
            if marks := special_tokens.find(item.prompt):
                raise TrialError(
                    f"item {item.id} holds {marks[0]}, a special token of the model, which a "
                    "server does not read as text: answer this benchmark with "
                    "evaluation.generator: transformers"
                )

    def _send_question(
        self,
        item: Item,
        served: ServedModel,
        messages: list[Mapping[str, Any]],
        extra_body: Mapping[str, Any],
    ) -> Response:
        """Send one question, with the client's own retries."""
        import openai

        try:
            completion = self._client.chat.completions.create(
                model=served.name,
                messages=messages,  # type: ignore[arg-type]
                extra_body=dict(extra_body),
            )
        except openai.NotFoundError as error:
            raise TrialError(
                f"{self.label}: serves no model {served.name}{self.quote_error(error)}: "
                f"{served.advice}"
            ) from None
        except openai.APIStatusError as error:
            # vLLM answers 500 once its engine has died, and then ends.
            kind = ServerLostError if error.status_code >= 500 else TrialError
            raise kind(
                f"{self.label}: refused item {item.id} (HTTP {error.status_code})"
                f"{self.quote_error(error)}"
            ) from None
        except openai.APITimeoutError:
            raise TrialError(
                f"{self.label}: no answer to item {item.id} within {self._settings.timeout:g} s: "
                "raise evaluation.generator.timeout; answers received so far are kept"
            ) from None
        except openai.APIConnectionError:
            raise ServerLostError(
                f"{self.label}: no connection: start it again; answers received so far are kept"
            ) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise TrialError(
                f"{self.label}: there was no chat completion ({type(error).__name__})"
            ) from None
        return self._to_response(item, served, completion)

    def _to_response(self, item: Item, served: ServedModel, completion: Any) -> Response:
        answering_model = getattr(completion, "model", None)
        if answering_model not in served.accepted_names:
            raise TrialError(
                f"{self.label}: item {item.id} was answered by model {answering_model}, not by "
                f"{served.name}"
            )
        choices = getattr(completion, "choices", None)
        reason = choices[0].finish_reason if choices else "nothing"
        if reason not in ("stop", "length"):
            raise TrialError(f"{self.label}: its answer to item {item.id} ended with '{reason}'")
        assert choices
        usage = getattr(completion, "usage", None)
        ids = getattr(completion, "prompt_token_ids", None)
        return Response(
            text=(choices[0].message.content or "").strip(),
            tokens=getattr(usage, "completion_tokens", None),
            cut=reason == "length",
            prompt_tokens=getattr(usage, "prompt_tokens", None),
            prompt_ids=hash_prompt(ids) if isinstance(ids, list) else None,
        )

    def quote_error(self, error: Any) -> str:
        """Return the server's error message, without its key."""
        message = error_message(error)
        if self._key:
            message = message.replace(self._key, "[key]")
        return f', and says "{message[:_MAX_MESSAGE_LENGTH]}"' if message else ""


def request_keys(server: str, model: AnsweringModel, decoding: Decoding) -> dict[str, Any]:
    """Return the keys of a request that make a server answer as transformers does here.

    Args:
        server: the server's software: `GeneratorConfig.server`.
        model: the model, whose tokens end an answer.
        decoding: how answers are generated.
    """
    settings, end_tokens = generation_settings(model.model, model.processor.tokenizer, decoding)
    length_keys = {"max_tokens": decoding.max_new_tokens}
    if server == "transformers":
        return {**length_keys, "generation_config": settings.to_json_string(use_diff=True)}
    greedy_keys = {**length_keys, "temperature": 0.0, "top_p": 1.0}
    if server != "vllm":
        return greedy_keys
    stops = getattr(model.model.generation_config, "stop_strings", None)
    stop_keys = {} if not stops else {"stop": stops, "include_stop_str_in_output": True}
    return {
        **greedy_keys,
        **stop_keys,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(end_tokens),
        "add_special_tokens": True,  # as a processor does
        "return_token_ids": True,
    }


class _BusyTimer:
    """Measures for how long a server had requests to answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = self._since = time.perf_counter()
        self._active = 0
        self.wait_seconds = self.seconds = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._active == 0:
                self.wait_seconds += time.perf_counter() - self._since
            self._active += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._active -= 1
            self._since = time.perf_counter()
            self.seconds = self._since - self._start


def question_parts(item: Item, url: Callable[[Picture], str] | None = None) -> list[dict[str, Any]]:
    """Return a question's parts, its pictures first, as the trial's own process shows them.

    Args:
        item: the question.
        url: gives a picture's data URL; None: it is made.
    """
    url = url or _encode_data_url
    pictures: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url(picture)}} for picture in item.pictures
    ]
    return [*pictures, {"type": "text", "text": item.prompt}]


def _group_by_picture(items: Sequence[Item]) -> list[Item]:
    """Return items with those of the same pictures one after another, else in their order.

    A picture is then encoded once, here and by a server that keeps what it has read.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(tuple(picture.key for picture in item.pictures), []).append(item)
    return [item for group in groups.values() for item in group]


class _DataUrlCache:
    """Pictures as they are sent, each made once for the questions that are asked about it."""

    def __init__(self, capacity: int) -> None:
        """Nothing is made.

        Args:
            capacity: how many pictures, those that were asked for last.
        """
        self._capacity, self._lock = capacity, threading.Lock()
        self._urls: dict[str, Future[str]] = {}

    def get_url(self, picture: Picture) -> str:
        """Return a picture's data URL; who asks while it is made waits for it."""
        with self._lock:
            cached = self._urls.pop(picture.key, None)
            future = cached or Future[str]()
            self._urls[picture.key] = future
            if len(self._urls) > self._capacity:
                del self._urls[next(iter(self._urls))]
        if cached is None:
            try:
                future.set_result(_encode_data_url(picture))
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def _encode_data_url(picture: Picture) -> str:
    buffer = io.BytesIO()
    to_rgb(picture.read()).save(buffer, "PNG", compress_level=1)  # lossless
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
