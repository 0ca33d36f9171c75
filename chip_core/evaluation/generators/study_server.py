"""One vLLM server for all arms of a study, which the study starts, watches and stops.

Trials find it by a file with its current address, which their user alone may read.
"""

from __future__ import annotations

import platform
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import requests

from chip_core.config.benchmark import GeneratorConfig
from chip_core.config.trial import ModelConfig
from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.base import AnsweringModel, locate_base
from chip_core.evaluation.generators.delivery import arm_name
from chip_core.evaluation.generators.local_server import LocalServer
from chip_core.models import loading
from chip_core.utils.errors import TrialError, warn_once
from chip_core.utils.files import make_private, read_json, write_private_json

ADDRESS_FILE = "server.json"  # in the server's folder in the study

_CHECK_INTERVAL = 0.5  # seconds between two checks of the server
_MAX_PORTS = 3  # ports that are tried: another program may take a free one first


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address and the state of a study's server."""

    number: int  # of its starts, from 1
    #: "starting": restarting after it had died; "gone": for good; "stopped": with the study
    state: Literal["up", "starting", "gone", "stopped"]
    label: str  # the server's software
    weights: str  # an id unique to the untrained model's weights, with which it was started
    machine: str
    base_url: str = ""
    key: str = ""
    why: str = ""  # why it is gone


def read_address(path: Path) -> Address:
    """Read the address of a study's server.

    Raises:
        TrialError: its study has ended, or the server is on another machine.
    """
    try:
        address = Address(**read_json(path))
    except (OSError, ValueError, TypeError):
        raise TrialError(
            "the study's vLLM server has ended with its study: run the study again"
        ) from None
    if address.machine != platform.node():
        raise TrialError(
            "evaluation.generator.serves is study, and the study's server is on "
            f"{address.machine}, which this trial's machine ({platform.node()}) cannot reach: "
            "write serves: trial"
        )
    return address


class StudyServer:
    """A server of the untrained model that takes adapters while it runs.

    Use it as a context manager: the server is restarted once if it dies, and is stopped at the
    end, even if this process is killed.
    """

    def __init__(
        self,
        settings: GeneratorConfig,
        model: ModelConfig,
        folder: Path,
        *,
        rank: int,
        devices: Sequence[str] = (),
        should_stop: Callable[[], bool] = lambda: False,
        on_lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Set up; start nothing.

        Args:
            settings: of a generator 'vllm'.
            model: the untrained model.
            folder: the folder of its logs (`vllm-1.log`, and `vllm-2.log` of a second start) and,
                while it runs, of the file with its address.
            rank: the largest rank of the adapters that it takes.
            devices: GPUs reserved for it; none: those of this process.
            should_stop: called while it starts; true: give up.
            on_lost: called with the reason, in another thread, when it is gone for good.

        Raises:
            TrialError: there is no vLLM.
        """
        self._settings, self._folder, self._rank = settings, folder.absolute(), rank
        self._devices, self._should_stop, self._on_lost = devices, should_stop, on_lost
        self._program = vllm.require_program()
        self._model = AnsweringModel(
            model=None,
            processor=None,
            weights=loading.make_base_weights_id(model),
            bf16=model.dtype == "bf16",
            **locate_base(model),
        )
        self._current_address = Address(
            number=0,
            state="starting",
            label=f"vLLM {vllm.read_version(self._program)}",
            weights=self._model.weights,
            machine=platform.node(),
        )
        self._server: LocalServer | None = None
        self._stop_event = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="study server", daemon=True)

    @property
    def address(self) -> Path:
        """The file with its address."""
        return self._folder / ADDRESS_FILE

    def __enter__(self) -> StudyServer:
        """Start the server.

        Raises:
            TrialError: it does not start, or `should_stop` returned true meanwhile.
        """
        make_private(self._folder)
        try:
            self._start()
        except BaseException:
            if self._server is not None:
                self._server.stop()
            self.address.unlink(missing_ok=True)
            raise
        self._watcher.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop it, and all that it started."""
        self._stop_event.set()
        try:
            self._watcher.join()
        finally:
            if self._server is not None:
                self._server.stop()
            self.address.unlink(missing_ok=True)

    def _start(self) -> None:
        number = self._current_address.number + 1
        log = self._folder / f"vllm-{number}.log"
        for attempt in range(1, _MAX_PORTS + 1):
            port, key = vllm.free_port(), secrets.token_hex(16)
            try:
                self._server = self._launch(port, key, log)
            except TrialError:
                if attempt == _MAX_PORTS or "already in use" not in log.read_text(errors="replace"):
                    raise
                continue
            if self._serves_model(port, key):
                break
            self._server.stop()  # another program answers at its port
        else:
            raise TrialError(f"vLLM does not serve {self._model.base} under its name ({log})")
        url = f"http://127.0.0.1:{port}/v1"
        self._write_address(
            replace(self._current_address, number=number, state="up", base_url=url, key=key)
        )

    def _launch(self, port: int, key: str, log: Path) -> LocalServer:
        environment = {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices)
        command = vllm.serve_command(
            self._program,
            self._settings,
            self._model,
            model_folder=None,
            port=port,
            rank=self._rank,
        )
        return LocalServer(
            command,
            health=f"http://127.0.0.1:{port}/health",
            log=log,
            environment=environment,
            start_timeout=vllm.start_timeout(self._settings),
            should_stop=lambda: self._stop_event.is_set() or self._should_stop(),
        )

    def _serves_model(self, port: int, key: str) -> bool:
        """Return whether the program at a port serves the model under the name of its weights."""
        session = requests.Session()
        session.trust_env = False  # a proxy of the environment does not reach this machine
        try:
            response = session.get(
                f"http://127.0.0.1:{port}/v1/models",
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
            )
            names = [model["id"] for model in response.json()["data"]]
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return False
        # Another program of the same kind may know the name, but not the key.
        return response.status_code == 200 and arm_name(self._model.weights) in names

    def _watch(self) -> None:
        """Restart the server once if it has died."""
        while not self._stop_event.wait(_CHECK_INTERVAL):
            assert self._server is not None
            if self._server.is_running:
                continue
            self._server.stop()
            reason = f"the study's vLLM server has died: {self._server.last_line()}"
            if self._current_address.number > 1:
                self._give_up(f"{reason}: it was already restarted once ({self._folder})")
                return
            warn_once(f"{reason}: it is restarted")
            try:
                self._write_address(replace(self._current_address, state="starting"))
                self._start()
            except Exception as error:  # any error must be reported, because trials wait for it
                self._give_up(f"{reason}, and could not be restarted: {error}")
                return

    def _give_up(self, reason: str) -> None:
        is_stopping = self._stop_event.is_set() or self._should_stop()
        try:
            self._write_address(
                replace(
                    self._current_address, state="stopped" if is_stopping else "gone", why=reason
                )
            )
        except OSError:  # a full disk: without the file trials end too, with another message
            with suppress(OSError):
                self.address.unlink()
        if not is_stopping:
            self._on_lost(reason)

    def _write_address(self, address: Address) -> None:
        self._current_address = address
        write_private_json(self.address, asdict(address))
