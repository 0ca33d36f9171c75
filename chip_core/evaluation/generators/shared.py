"""Answers from the one server of a study, if an arm's weights can be an adapter there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chip_core.config.benchmark import GeneratorConfig
from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    GenerationTiming,
    Generator,
    OnAnswers,
    ServerLostError,
)
from chip_core.evaluation.generators.delivery import arm_name, find_weights_beyond_adapter
from chip_core.evaluation.generators.openai import OpenAIGenerator
from chip_core.evaluation.generators.study_server import Address, read_address
from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.utils.errors import StoppedError

#: Seconds after which a server that counts as running but is unreachable is lost.
_SETTLE_SECONDS = 15.0


class SharedGenerator(Generator):
    """Uses the study's server, or the trial's own if that cannot serve an arm's weights."""

    def __init__(self, settings: GeneratorConfig, folder: Path, address_file: Path) -> None:
        """Set up; send no request.

        Args:
            settings: of a generator 'vllm'.
            folder: the attempt's folder.
            address_file: the file with the address of the study's server.

        Raises:
            TrialError: the server is gone, or on another machine.
        """
        self._settings, self._folder, self._address_file = settings, folder, address_file
        self._address = read_address(address_file)
        self.label = self._address.label
        self.identity = vllm.server_identity(self.label, settings)
        self._client: OpenAIGenerator | None = None
        self._own_generator: vllm.VllmGenerator | None = None

    def answer(
        self,
        items: Sequence[Item],
        model: AnsweringModel,
        decoding: Decoding,
        on_answers: OnAnswers,
    ) -> GenerationTiming:
        """Answer the items; if the server dies, answer the rest once it has been restarted."""
        if find_weights_beyond_adapter(model) is not None:
            if self._own_generator is None:
                self._own_generator = vllm.VllmGenerator(self._settings, self._folder)
            return self._own_generator.answer(items, model, decoding, on_answers)
        missing, start = {item.id: item for item in items}, time.perf_counter()

        def on_shared_answers(answers: Sequence[tuple[Item, Response]]) -> None:
            on_answers(answers)
            for item, _ in answers:
                del missing[item.id]

        timing = GenerationTiming()
        while missing:
            client = self._connect()
            try:
                timing = client.answer([*missing.values()], model, decoding, on_shared_answers)
            except ServerLostError as error:
                client.abandon()
                self._client = None
                self._address = self._wait_for_restart(error)
        return replace(timing, seconds=time.perf_counter() - start)

    def close(self) -> None:
        """Unload what was loaded into a server; the study's server keeps running."""
        if self._client is not None:
            self._client.close()
        if self._own_generator is not None:
            self._own_generator.close()

    def _connect(self) -> OpenAIGenerator:
        if self._client is None:
            if self._address.state != "up":
                self._address = self._wait_for_restart(None)
            address = self._address
            self._client = OpenAIGenerator(
                vllm.client_settings(self._settings, address.label, address.base_url),
                self._folder,
                {address.weights: arm_name(address.weights)},
                key=address.key,
            )
        return self._client

    def _wait_for_restart(self, error: ServerLostError | None) -> Address:
        """Wait until the server is restarted; return its new address.

        Raises:
            TrialError: it is gone for good, or runs and cannot be reached.
            StoppedError: its study is stopping.
        """
        start, previous = time.monotonic(), self._address
        while True:
            address = read_address(self._address_file)
            if address.state == "stopped":
                raise StoppedError("stopped while the study's server was unreachable")
            if address.state == "gone":
                raise ServerLostError(f"{address.why}; answers received so far are kept")
            if address.state == "up" and (address.number > previous.number or error is None):
                return address
            wait_seconds = time.monotonic() - start
            if error is not None and (address.state == "up") and wait_seconds > _SETTLE_SECONDS:
                raise error
            # Its study is gone.
            if wait_seconds > vllm.start_timeout(self._settings) + _SETTLE_SECONDS:
                raise ServerLostError(
                    f"the study's server did not come back within {wait_seconds:.0f} s; answers "
                    "received so far are kept"
                )
            time.sleep(0.2)
