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

from chip_core.config.generator import GeneratorConfig
from chip_core.data.image_files import to_rgb
from chip_core.data.special_tokens import SpecialTokens
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    Generator,
    Pace,
    ServerLostError,
    Tell,
)
from chip_core.evaluation.generators.delivery import Delivery, Served
from chip_core.evaluation.generators.parity import prompt_mark
from chip_core.evaluation.inference.decoder import generation_settings
from chip_core.evaluation.judge.endpoint import own_words
from chip_core.evaluation.task import Decoding, Item, Picture, Response
from chip_core.utils.errors import TrialError

_WORDS = 300  # characters shown of a server's message


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

        name, here = settings.api_key_env, key is not None
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
            http_client=openai.DefaultHttpxClient(trust_env=False) if here else None,
        )
        self._delivery = Delivery(settings, self._client, folder, dict(served or {}), self._told)
        software = f"{settings.server} {settings.version}".removeprefix("other ")
        self.label = f"{software} at {settings.base_url}"
        self.identity = {"generator": "openai", "server": software}

    def answer(
        self, items: Sequence[Item], model: AnsweringModel, decoding: Decoding, tell: Tell
    ) -> Pace:
        """Answer the items, at most `concurrency` at a time."""
        if not items:
            return Pace()
        self._check_marks(items, model)
        served = self._delivery.bring(model)
        extra = request_keys(self._settings.server, model, decoding)
        busy, failures = _Busy(), list[TrialError]()
        pictures = _DataUrls(2 * self._settings.concurrency)

        def ask(item: Item) -> Response | None:
            if failures:
                return None
            messages: list[Mapping[str, Any]] = [
                {"role": "user", "content": question_parts(item, pictures.of)}
            ]
            try:
                with busy:
                    return self._ask(item, served, messages, extra)
            except TrialError as error:
                failures.append(error)
                return None

        pool = ThreadPoolExecutor(max_workers=self._settings.concurrency)
        try:
            asked = {pool.submit(ask, item): item for item in _by_picture(items)}
            for future in as_completed(asked):
                response = future.result()
                if response is not None:  # including requests under way when another one failed
                    tell([(asked[future], response)])
        finally:
            pool.shutdown(cancel_futures=True)
        if failures:
            raise next(
                (each for each in failures if isinstance(each, ServerLostError)), failures[0]
            )
        return Pace(seconds=busy.seconds, waited=busy.waited)

    def close(self) -> None:
        """Unload what was loaded into the server."""
        self._delivery.close()
        self._client.close()

    def abandon(self) -> None:
        """Close the client of a server that is gone, without unloading."""
        self._client.close()

    def _check_marks(self, items: Sequence[Item], model: AnsweringModel) -> None:
        """Refuse a question that a server would tokenize differently from transformers here."""
        marks = SpecialTokens(model.processor)
        for item in items:
            if held := marks.find(item.prompt):
                raise TrialError(
                    f"item {item.id} holds {held[0]}, a mark of the model, which a server reads as "
                    "what it does and not as text: answer this benchmark by "
                    "evaluation.generator: transformers"
                )

    def _ask(
        self,
        item: Item,
        served: Served,
        messages: list[Mapping[str, Any]],
        extra: Mapping[str, Any],
    ) -> Response:
        """Send one question, with the client's own retries."""
        import openai

        try:
            said = self._client.chat.completions.create(
                model=served.name,
                messages=messages,  # type: ignore[arg-type]
                extra_body=dict(extra),
            )
        except openai.NotFoundError as error:
            raise TrialError(
                self._told(f"serves no model {served.name}{self.words(error)}: {served.advice}")
            ) from None
        except openai.APIStatusError as error:
            # vLLM answers 500 once its engine has died, and then ends.
            kind = ServerLostError if error.status_code >= 500 else TrialError
            raise kind(
                self._told(f"refused item {item.id} (HTTP {error.status_code}){self.words(error)}")
            ) from None
        except openai.APITimeoutError:
            raise TrialError(
                self._told(
                    f"no answer to item {item.id} within {self._settings.timeout:g} s: raise "
                    "evaluation.generator.timeout; answers that came are kept"
                )
            ) from None
        except openai.APIConnectionError:
            raise ServerLostError(
                self._told("no connection: start it again; answers that came are kept")
            ) from None
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise TrialError(
                self._told(f"no chat completion came ({type(error).__name__})")
            ) from None
        return self._response(item, served, said)

    def _response(self, item: Item, served: Served, said: Any) -> Response:
        maker = getattr(said, "model", None)
        if maker not in served.answers_as:
            raise TrialError(
                self._told(f"item {item.id} was answered by model {maker}, not by {served.name}")
            )
        choices = getattr(said, "choices", None)
        reason = choices[0].finish_reason if choices else "nothing"
        if reason not in ("stop", "length"):
            raise TrialError(self._told(f"its answer to item {item.id} ended by '{reason}'"))
        assert choices
        usage = getattr(said, "usage", None)
        ids = getattr(said, "prompt_token_ids", None)
        return Response(
            text=(choices[0].message.content or "").strip(),
            tokens=getattr(usage, "completion_tokens", None),
            cut=reason == "length",
            prompt_tokens=getattr(usage, "prompt_tokens", None),
            prompt_ids=prompt_mark(ids) if isinstance(ids, list) else None,
        )

    def words(self, error: Any) -> str:
        """Return the server's error message, without its key."""
        said = own_words(error)
        if self._key:
            said = said.replace(self._key, "[key]")
        return f', and says "{said[:_WORDS]}"' if said else ""

    def _told(self, what: str) -> str:
        return f"{self.label}: {what}"


def request_keys(server: str, model: AnsweringModel, decoding: Decoding) -> dict[str, Any]:
    """Return the keys of a request that make a server answer as transformers does here.

    Args:
        server: the server's software: `GeneratorConfig.server`.
        model: the model, whose tokens end an answer.
        decoding: how answers are generated.
    """
    settings, ends = generation_settings(model.model, model.processor.tokenizer, decoding)
    longest = {"max_tokens": decoding.max_new_tokens}
    if server == "transformers":
        return {**longest, "generation_config": settings.to_json_string(use_diff=True)}
    plain = {**longest, "temperature": 0.0, "top_p": 1.0}
    if server != "vllm":
        return plain
    stops = getattr(model.model.generation_config, "stop_strings", None)
    own_stops = {} if not stops else {"stop": stops, "include_stop_str_in_output": True}
    return {
        **plain,
        **own_stops,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(ends),
        "add_special_tokens": True,  # as a processor does
        "return_token_ids": True,
    }


class _Busy:
    """Measures for how long a server had requests to answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._since = time.perf_counter()
        self._at_work = 0
        self.waited = self.seconds = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._at_work == 0:
                self.waited += time.perf_counter() - self._since
            self._at_work += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._at_work -= 1
            self._since = time.perf_counter()
            self.seconds = self._since - self._began


def question_parts(item: Item, url: Callable[[Picture], str] | None = None) -> list[dict[str, Any]]:
    """Return a question's parts, its pictures first, as the trial's own process shows them.

    Args:
        item: the question.
        url: gives a picture's data URL; None: it is made.
    """
    url = url or _data_url
    pictures: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url(picture)}} for picture in item.pictures
    ]
    return [*pictures, {"type": "text", "text": item.prompt}]


def _by_picture(items: Sequence[Item]) -> list[Item]:
    """Return items with those of the same pictures one after another, else in their order.

    A picture is then encoded once, here and by a server that keeps what it has read.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(tuple(picture.key for picture in item.pictures), []).append(item)
    return [item for group in groups.values() for item in group]


class _DataUrls:
    """Pictures as they are sent, each made once for the questions that are asked about it."""

    def __init__(self, kept: int) -> None:
        """Nothing is made.

        Args:
            kept: how many pictures, those that were asked for last.
        """
        self._kept, self._lock = kept, threading.Lock()
        self._made: dict[str, Future[str]] = {}

    def of(self, picture: Picture) -> str:
        """Return a picture's data URL; who asks while it is made waits for it."""
        with self._lock:
            found = self._made.pop(picture.key, None)
            future = found or Future[str]()
            self._made[picture.key] = future
            if len(self._made) > self._kept:
                del self._made[next(iter(self._made))]
        if found is None:
            try:
                future.set_result(_data_url(picture))
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def _data_url(picture: Picture) -> str:
    held = io.BytesIO()
    to_rgb(picture.read()).save(held, "PNG", compress_level=1)  # lossless
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
