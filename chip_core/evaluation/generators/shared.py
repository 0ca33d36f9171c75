"""Answers from the one server of a study, if an arm's weights can be an adapter there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from chip_core.config.generator import GeneratorConfig
from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    Generator,
    Pace,
    ServerLostError,
    Tell,
)
from chip_core.evaluation.generators.delivery import arm_name, beyond_adapter
from chip_core.evaluation.generators.openai import OpenAIGenerator
from chip_core.evaluation.generators.study_server import Address, read_address
from chip_core.evaluation.task import Decoding, Item, Response
from chip_core.utils.errors import StoppedError

_SETTLED = 15.0  # seconds after which a server that counts as running but is unreachable is lost


class SharedGenerator(Generator):
    """Uses the study's server, or the trial's own if that cannot serve an arm's weights."""

    def __init__(self, settings: GeneratorConfig, folder: Path, address: Path) -> None:
        """Set up; send no request.

        Args:
            settings: of a generator 'vllm'.
            folder: the attempt's folder.
            address: the file with the address of the study's server.

        Raises:
            TrialError: the server is gone, or on another machine.
        """
        self._settings, self._folder, self._file = settings, folder, address
        self._known = read_address(address)
        self.label = self._known.label
        self.identity = vllm.identity(self.label, settings)
        self._asked: OpenAIGenerator | None = None
        self._own: vllm.VllmGenerator | None = None

    def answer(
        self, items: Sequence[Item], model: AnsweringModel, decoding: Decoding, tell: Tell
    ) -> Pace:
        """Answer the items; if the server dies, answer the rest once it has been restarted."""
        if not items:
            return Pace()
        if beyond_adapter(model) is not None:
            if self._own is None:
                self._own = vllm.VllmGenerator(self._settings, self._folder)
            return self._own.answer(items, model, decoding, tell)
        left, began = {item.id: item for item in items}, time.perf_counter()

        def told(answers: Sequence[tuple[Item, Response]]) -> None:
            tell(answers)
            for item, _ in answers:
                del left[item.id]

        while True:
            asked = self._server()
            try:
                pace = asked.answer([*left.values()], model, decoding, told)
            except ServerLostError as error:
                asked.abandon()
                self._asked = None
                self._known = self._next(error)
                continue
            return Pace(seconds=time.perf_counter() - began, waited=pace.waited, notes=pace.notes)

    def close(self) -> None:
        """Unload what was loaded into a server; the study's server keeps running."""
        if self._asked is not None:
            self._asked.close()
        if self._own is not None:
            self._own.close()

    def _server(self) -> OpenAIGenerator:
        if self._asked is None:
            if self._known.state != "up":
                self._known = self._next(None)
            known = self._known
            self._asked = OpenAIGenerator(
                vllm.spoken_to(self._settings, known.label, known.base_url),
                self._folder,
                {known.weights: arm_name(known.weights)},
                key=known.key,
            )
        return self._asked

    def _next(self, error: ServerLostError | None) -> Address:
        """Wait until the server is restarted; return its new address.

        Raises:
            TrialError: it is gone for good, or runs and cannot be reached.
            StoppedError: its study is stopping.
        """
        began, before = time.monotonic(), self._known
        while True:
            known = read_address(self._file)
            if known.state == "stopped":
                raise StoppedError("stopped while the study's server was away")
            if known.state == "gone":
                raise ServerLostError(f"{known.why}; answers that came are kept")
            if known.state == "up" and (known.number > before.number or error is None):
                return known
            waited = time.monotonic() - began
            if error is not None and (known.state == "up") and waited > _SETTLED:
                raise error
            if waited > vllm.patience(self._settings) + _SETTLED:  # its study is gone
                raise ServerLostError(
                    f"the study's server did not come back within {waited:.0f} s; answers that "
                    "came are kept"
                )
            time.sleep(0.2)
