"""Answers from a vLLM server that the trial starts, and that ends with it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from chip_core.config.benchmark import GeneratorConfig
from chip_core.evaluation.generators.base import (
    AnsweringModel,
    GenerationTiming,
    Generator,
    OnAnswers,
)
from chip_core.evaluation.generators.choice import RANKS, rank_problem
from chip_core.evaluation.generators.delivery import (
    arm_name,
    find_weights_beyond_adapter,
    make_model_folder,
)
from chip_core.evaluation.generators.local_server import LocalServer
from chip_core.evaluation.generators.openai import OpenAIGenerator
from chip_core.evaluation.task import Decoding, Item
from chip_core.models.adapters import is_adapted
from chip_core.utils.errors import TrialError

#: Names the program, if it is not `vllm` on the PATH: vLLM pins versions of torch and
#: transformers, so it often has an environment of its own.
PROGRAM_VARIABLE = "CHIP_ABLATE_VLLM"

LOG = "vllm.log"  # in the attempt's folder

#: Adapters in one batch of a server that several arms use.
_MAX_ADAPTERS = 8


class VllmGenerator(Generator):
    """Starts vLLM for a model's weights when the first question needs an answer.

    Meanwhile, the model of this process leaves its device to the server.
    """

    def __init__(self, settings: GeneratorConfig, folder: Path) -> None:
        """Set up; start nothing.

        Args:
            settings: of a generator 'vllm'.
            folder: the attempt's folder, for the server's log, and for a merged model while it is
                served.

        Raises:
            TrialError: there is no vLLM.
        """
        self._settings, self._folder = settings, folder
        self._program = require_program()
        self.label = f"vLLM {read_version(self._program)}"
        self.identity = server_identity(self.label, settings)
        self._server: LocalServer | None = None
        self._client: OpenAIGenerator | None = None
        self._served_weights: str | None = None  # the id of its weights
        self._moved_model: tuple[Any, torch.device] | None = None
        self._merged_folder: Path | None = None

    def answer(
        self,
        items: Sequence[Item],
        model: AnsweringModel,
        decoding: Decoding,
        on_answers: OnAnswers,
    ) -> GenerationTiming:
        """Answer the items; start the server if it does not run."""
        if self._client is None:
            self._client = self._start(model)
        assert self._served_weights == model.weights, "a trial asks one model"
        return self._client.answer(items, model, decoding, on_answers)

    def _start(self, model: AnsweringModel) -> OpenAIGenerator:
        model_folder: Path | None = None
        if model.trained is not None:
            model_folder = model.trained
            if is_adapted(model.model):
                is_merged = find_weights_beyond_adapter(model) is not None
                model_folder = make_model_folder(model, self._folder) if is_merged else None
                self._merged_folder = model_folder
        device = next(model.model.parameters()).device
        if device.type == "cuda":
            model.model.to("cpu")
            torch.cuda.empty_cache()
            self._moved_model = model.model, device
        port, key = free_port(), secrets.token_hex(16)
        self._server = LocalServer(
            serve_command(
                self._program, self._settings, model, model_folder=model_folder, port=port
            ),
            health=f"http://127.0.0.1:{port}/health",
            log=self._folder / LOG,
            environment={"VLLM_API_KEY": key},
            start_timeout=start_timeout(self._settings),
        )
        self._served_weights = model.weights
        local = client_settings(self._settings, self.label, f"http://127.0.0.1:{port}/v1")
        served = {model.weights: arm_name(model.weights)}
        return OpenAIGenerator(local, self._folder, served, key=key)

    def close(self) -> None:
        """Stop the server, and move the model back to its device."""
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.stop()
        if self._merged_folder is not None:
            shutil.rmtree(self._merged_folder, ignore_errors=True)
        if self._moved_model is not None:
            model, device = self._moved_model
            model.to(device)


def server_identity(label: str, settings: GeneratorConfig) -> dict[str, Any]:
    """Return the settings of a vLLM server that affect answers."""
    return {"generator": label, "options": dict(settings.options)}


def client_settings(settings: GeneratorConfig, label: str, base_url: str) -> GeneratorConfig:
    """Return the settings for requests to a vLLM server on this machine."""
    version_of = label.removeprefix("vLLM ")
    local = {"kind": "openai", "server": "vllm", "version": version_of, "base_url": base_url}
    return settings.model_copy(update=local)


def start_timeout(settings: GeneratorConfig) -> float:
    """Return how many seconds a start may take, which includes compiling and loading weights."""
    return max(settings.timeout, 1800.0)


def serve_command(
    program: str,
    settings: GeneratorConfig,
    model: AnsweringModel,
    *,
    model_folder: Path | None,
    port: int,
    rank: int | None = None,
) -> list[str]:
    """Return the command line of the server.

    Args:
        program: the path of vLLM's program.
        settings: of a generator 'vllm'.
        model: the served weights, named by their hash.
        model_folder: a folder with all of them; None: the base model's, with the arm's adapter if
            it has one.
        port: its port on 127.0.0.1.
        rank: the largest rank of adapters that it loads while it runs.

    Raises:
        TrialError: the adapter's rank is more than vLLM takes.
    """
    name = arm_name(model.weights)
    adapter = model.trained if model_folder is None else None
    command = [
        program,
        "serve",
        model.base if model_folder is None else str(model_folder.absolute()),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16" if model.bf16 else "float32"]
    command += ["--generation-config", "vllm", "--seed", "0"]
    command += ["--served-model-name", name if adapter is None else f"{name}-base"]
    if model_folder is None and model.revision is not None:
        command += ["--revision", model.revision]
    if model.trust_remote_code:
        command += ["--trust-remote-code"]
    if adapter is not None:
        own_rank = max(config.r for config in model.model.peft_config.values())
        if (problem := rank_problem(own_rank)) is not None:
            raise TrialError(problem)
        command += [
            *_adapter_options(own_rank, 1),
            "--lora-modules",
            f"{name}={adapter.absolute()}",
        ]
    if rank is not None:
        command += _adapter_options(rank, _MAX_ADAPTERS)
    return command + format_options(settings.options)


def _adapter_options(rank: int, max_adapters: int) -> list[str]:
    """Return the options for adapters up to a rank, `max_adapters` of them in one batch."""
    largest = next(allowed for allowed in RANKS if allowed >= rank)
    return ["--enable-lora", "--max-loras", str(max_adapters), "--max-lora-rank", str(largest)]


def format_options(options: Mapping[str, Any]) -> list[str]:
    """Format options for a command line: a switch for true or false, JSON for nested values."""
    import json

    arguments: list[str] = []
    for key, value in options.items():
        name = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(name if value else f"--no-{name[2:]}")
        elif value is not None:
            # In one argument, so that a value is never taken for an option.
            arguments.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return arguments


def require_program() -> str:
    """Return the path of vLLM's program.

    Raises:
        TrialError: there is none.
    """
    path = find_program()
    if path is None:
        raise TrialError(NO_PROGRAM)
    return path


def find_program() -> str | None:
    """Return the path of vLLM's program, or None."""
    configured = os.environ.get(PROGRAM_VARIABLE)
    sibling = str(Path(sys.executable).with_name("vllm"))
    return shutil.which(configured) if configured else shutil.which("vllm") or shutil.which(sibling)


NO_PROGRAM = (
    "there is no program `vllm`: pip install 'chip-ablate[vllm]' where trials run, or name that "
    f"of another environment with {PROGRAM_VARIABLE}, or write evaluation.generator: transformers"
)


def read_version(program: str) -> str:
    """Return the version of a vLLM program.

    Raises:
        TrialError: it prints none.
    """
    try:
        completed = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired):
        completed = None
    match = None if completed is None else re.search(r"\d+\.\d+\S*", completed.stdout)
    if match is None:
        raise TrialError(f"{program} --version shows no version: check that it runs")
    return match[0]


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
