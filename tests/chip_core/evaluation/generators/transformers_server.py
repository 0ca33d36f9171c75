"""Two arms of the embedded model, and transformers' own server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import requests
import torch

from chip_core.config.benchmark import BenchmarkConfig, DataPaths, GeneratorConfig, ParityConfig
from chip_core.config.trial import LoraConfig, ModelConfig
from chip_core.evaluation.generators.answering import InferenceContext
from chip_core.evaluation.generators.openai import OpenAIGenerator
from chip_core.models import loading
from chip_core.models.adapters import find_decoder_linears
from chip_core.models.parts import find_tower_linears
from chip_core.shapes import MODEL_FOLDER

SIX_ITEMS = BenchmarkConfig.model_validate({"name": "shapes", "limit": 6, "max_new_tokens": 20})


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """`transformers serve`, in fp32 on the CPU, in threads of this process."""

    port: int = field(default_factory=find_free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        from transformers.cli.serve import Serve

        self.serve = Serve(
            host="127.0.0.1",
            port=self.port,
            device="cpu",
            dtype="float32",
            log_level="error",
            non_blocking=True,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return
            except requests.ConnectionError:
                time.sleep(0.1)
        raise TimeoutError("transformers serve did not start")

    def kill(self) -> None:
        """End it in the middle of what it does, as a signal would: connections are reset."""
        uvicorn = self.serve.server
        for connection in [*uvicorn.server_state.connections]:
            connection.loop.call_soon_threadsafe(connection.transport.abort)
        self.serve.kill_server()


@contextmanager
def run_server() -> Iterator[Server]:
    server = Server()
    server.start()
    try:
        yield server
    finally:
        server.kill()


def make_adapter(folder: Path, seed: int, *, tower: bool = False) -> Path:
    """Write an adapter of the embedded model that changes its answers, as PEFT saves it."""
    import peft

    model, processor = loading.load(ModelConfig(path="shapes"))
    targets = find_decoder_linears(model, LoraConfig(targets=("q_proj", "v_proj")))
    targets += find_tower_linears(model) if tower else []
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    processor.save_pretrained(folder)
    return folder


def make_generator_config(url: str, **changes: Any) -> GeneratorConfig:
    given = {"kind": "openai", "server": "transformers", "version": "5", "base_url": url}
    return GeneratorConfig.model_validate(
        {**given, "retries": 0, "concurrency": 3, "timeout": 60, **changes}
    )


def make_arm_context(folder: Path, arm: Path | None, **changes: Any) -> InferenceContext:
    """Make the context of an arm, or of the untrained model, in this process."""
    torch.set_num_threads(1)
    base = ModelConfig(path="shapes")
    model, processor = loading.load(base, trained=arm)
    given = {"weights": "base" if arm is None else arm.name, "data_paths": DataPaths(), **changes}
    return InferenceContext(
        model=model,
        processor=processor,
        folder=folder,
        batch_size=4,
        base=base,
        trained=arm,
        parity=ParityConfig(items=4, share=1.0),
        **given,
    )


def use_server(
    context: InferenceContext,
    url: str,
    served: dict[str, str] | None = None,
    **changes: Any,
) -> InferenceContext:
    """Return the same context, answered by a server."""
    generator = OpenAIGenerator(make_generator_config(url, **changes), context.folder, served)
    return replace(context, generator=generator)


def copy_model(folder: Path, **texts: str) -> Path:
    """Copy the embedded model's folder, with other files."""
    folder.mkdir(parents=True)
    for file in MODEL_FOLDER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder
