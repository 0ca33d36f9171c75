"""One vLLM server for all arms of a study: started, looked after and ended by the study.

Trials find it by a file that their user alone may read: it says where the server is now.
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

from chip_core.config.generator import GeneratorConfig
from chip_core.config.trial import ModelConfig
from chip_core.evaluation.generators import vllm
from chip_core.evaluation.generators.base import AnsweringModel
from chip_core.evaluation.generators.delivery import arm_name
from chip_core.evaluation.generators.local_server import LocalServer
from chip_core.models import loading
from chip_core.utils.errors import TrialError, warn_once
from chip_core.utils.files import make_private, read_json, write_private_json

ADDRESS = "server.json"  # in the study's folder of its server

_EVERY = 0.5  # seconds between two looks at the server
_PORTS = 3  # ports that are tried: another program may take a free one first


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a study's server is, and what became of it."""

    number: int  # of its starts, from 1
    #: "starting": again, after it had died; "gone": for good; "stopped": with the study
    state: Literal["up", "starting", "gone", "stopped"]
    label: str  # what it is
    weights: str  # what tells the untrained model's, which it was started with, from all others
    machine: str
    base_url: str = ""
    key: str = ""
    why: str = ""  # it is gone


def read_address(path: Path) -> Address:
    """Read where a study's server is.

    Raises:
        TrialError: its study has ended, or the server is on another machine.
    """
    try:
        found = Address(**read_json(path))
    except (OSError, ValueError, TypeError):
        raise TrialError(
            "the study's vLLM server has ended with its study: run the study again"
        ) from None
    if found.machine != platform.node():
        raise TrialError(
            f"evaluation.generator.serves is study, and the study's server is on {found.machine}, "
            f"which this trial's machine ({platform.node()}) does not reach: write serves: trial"
        )
    return found


class StudyServer:
    """A server of the untrained model, which takes adapters while it runs.

    Use it as a context manager: it is started again once where it dies, and nothing is left of it
    at the end, nor when this process is killed.
    """

    def __init__(
        self,
        settings: GeneratorConfig,
        model: ModelConfig,
        folder: Path,
        *,
        rank: int,
        devices: Sequence[str] = (),
        stopping: Callable[[], bool] = lambda: False,
        lost: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Nothing is started.

        Args:
            settings: of a generator 'vllm'.
            model: the untrained model.
            folder: gets its logs (`vllm-1.log`, and `vllm-2.log` of a second start) and, while it
                runs, the file of its address.
            rank: the largest of the adapters that it is to take.
            devices: the GPUs that it has of its own; none: those of this process.
            stopping: asked while it starts whether to give that up.
            lost: told why, in another thread, when it is gone for good.

        Raises:
            TrialError: there is no vLLM.
        """
        self._settings, self._folder, self._rank = settings, folder.absolute(), rank
        self._devices, self._stopping, self._lost = devices, stopping, lost
        self._program = vllm.program()
        place = loading.local_folder(model.path)
        self._model = AnsweringModel(
            model=None,
            processor=None,
            weights=loading.base_weights(model),
            bf16=model.dtype == "bf16",
            base=str(place or model.path),
            revision=None if place is not None else model.revision,
            trust_remote_code=model.trust_remote_code,
        )
        self._known = Address(
            number=0,
            state="starting",
            label=f"vLLM {vllm.version(self._program)}",
            weights=self._model.weights,
            machine=platform.node(),
        )
        self._server: LocalServer | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="study server", daemon=True)

    @property
    def address(self) -> Path:
        """The file that says where it is."""
        return self._folder / ADDRESS

    def __enter__(self) -> StudyServer:
        """Start it.

        Raises:
            TrialError: it does not start, or was told to stop meanwhile.
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
        """End it, and all that it started."""
        self._ended.set()
        try:
            self._watcher.join()
        finally:
            if self._server is not None:
                self._server.stop()
            self.address.unlink(missing_ok=True)

    def _start(self) -> None:
        number = self._known.number + 1
        log = self._folder / f"vllm-{number}.log"
        for tried in range(1, _PORTS + 1):
            port, key = vllm.free_port(), secrets.token_hex(16)
            try:
                self._server = self._launch(port, key, log)
            except TrialError:
                if tried == _PORTS or "already in use" not in log.read_text(errors="replace"):
                    raise
                continue
            if self._serves(port, key):
                break
            self._server.stop()  # another program has answered in its place
        else:
            raise TrialError(f"vLLM does not serve {self._model.base} by its name ({log})")
        url = f"http://127.0.0.1:{port}/v1"
        self._tell(replace(self._known, number=number, state="up", base_url=url, key=key))

    def _launch(self, port: int, key: str, log: Path) -> LocalServer:
        environment = {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices)
        command = vllm.serve_command(
            self._program, self._settings, self._model, whole=None, port=port, rank=self._rank
        )
        return LocalServer(
            command,
            health=f"http://127.0.0.1:{port}/health",
            log=log,
            environment=environment,
            patience=vllm.patience(self._settings),
            stopping=lambda: self._ended.is_set() or self._stopping(),
        )

    def _serves(self, port: int, key: str) -> bool:
        """Return whether what answers at a port knows the model by the name of its weights."""
        asking = requests.Session()
        asking.trust_env = False  # a proxy of the environment does not reach this machine
        try:
            said = asking.get(
                f"http://127.0.0.1:{port}/v1/models",
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
            )
            names = [each["id"] for each in said.json()["data"]]
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return False
        # Another program of the same kind knows the name, and not the key.
        return said.status_code == 200 and arm_name(self._model.weights) in names

    def _watch(self) -> None:
        """Start it again where it has died, once."""
        while not self._ended.wait(_EVERY):
            assert self._server is not None
            if self._server.runs:
                continue
            self._server.stop()
            why = f"the study's vLLM server has died: {self._server.last_line()}"
            if self._known.number > 1:
                self._give_up(f"{why}: it was started again once ({self._folder})")
                return
            warn_once(f"{why}: it is started again")
            try:
                self._tell(replace(self._known, state="starting"))
                self._start()
            except Exception as error:  # whatever it is: trials wait to hear of it
                self._give_up(f"{why}, and could not be started again: {error}")
                return

    def _give_up(self, why: str) -> None:
        stopping = self._ended.is_set() or self._stopping()
        try:
            self._tell(replace(self._known, state="stopped" if stopping else "gone", why=why))
        except OSError:  # a full disk: without the file trials end too, with other words
            with suppress(OSError):
                self.address.unlink()
        if not stopping:
            self._lost(why)

    def _tell(self, known: Address) -> None:
        self._known = known
        write_private_json(self.address, asdict(known))
