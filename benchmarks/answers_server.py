"""How fast a server on this machine answers, beside the generator of the trial's own process.

    python -m benchmarks.answers_server [--items 32] [--rounds 3] [--concurrency 8] [--json]
    python -m benchmarks.answers_server --vllm PROGRAM

`transformers serve`, or vLLM for CPUs if its program `vllm` is given, on 127.0.0.1, in fp32 on the
CPU, has the embedded world's model, and takes turns with ways of answering the same questions here.
All have one thread:

- `here`: as a trial does by default, in batches of 64;
- `here, one at a time`: what a server's own computing takes that answers one request after another;
- `server`: as a trial does with `evaluation.generator: {kind: openai, server: transformers}`, or
  `server: vllm`;
- `bare`: its requests made ready beforehand, one after another on one connection: its own pace. A
  server may have kept what it read of these questions.

Each round has questions of its own. Then four arms' adapters, asked side by side, beside one arm
that is asked four times as many, others, and one that answers here. Seconds are of the clock, CPU
seconds those of this process and of the server's. `same answers`: how many of the last round are
those of the first way.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.machine import describe_machine
from chip_core.config.benchmark import GeneratorConfig
from chip_core.config.trial import LoraConfig, ModelConfig
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.generators.base import AnsweringModel
from chip_core.evaluation.generators.local_server import LocalServer
from chip_core.evaluation.generators.openai import OpenAIGenerator
from chip_core.evaluation.generators.transformers import TransformersGenerator
from chip_core.evaluation.generators.vllm import free_port, read_version
from chip_core.evaluation.task import Decoding, Item
from chip_core.models import loading
from chip_core.models.adapters import find_decoder_linears
from chip_core.shapes import MODEL_FOLDER

ARMS = 4
LONGEST = Decoding(max_new_tokens=32)

Answers = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=32, help="questions of a round, of each arm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time")
    parser.add_argument("--vllm", type=Path, help="vLLM's program, which answers instead")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    options = parser.parse_args()
    if (most := (1 + ARMS) * options.items * (options.rounds + 1)) > 1000:
        parser.error(f"--items and --rounds ask {most} questions, and the world has 1000")
    torch.set_num_threads(1)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name, serve_model(Path(name), options.vllm) as server:
        found = {
            "benchmark": "answers_server",
            "machine": machine,
            "items": options.items,
            "concurrency": options.concurrency,
            "server": server.kind,
            "version": server.version,
            "one model": _measure_one_model(server, options),
            "arms": _measure_arms(server, options, Path(name)),
        }
    if options.json:
        print(json.dumps(found))
        return
    for part in ("one model", "arms"):
        for way, figures in found[part].items():
            print(f"{part}: {way}: {figures}")


@dataclass(frozen=True)
class Server:
    """A server that runs on this machine."""

    kind: str  # of `evaluation.generator.server`
    version: str
    url: str
    model: str  # what it calls the untrained model
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of its processes so far."""
        found = 0.0
        for each in (self.process, *self.process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found += sum(each.cpu_times()[:2])
        return found

    def generator(self, concurrency: int) -> OpenAIGenerator:
        """Return what asks it, as a trial does."""
        settings = {
            **{"kind": "openai", "server": self.kind, "version": "0", "base_url": self.url},
            **{"concurrency": concurrency, "retries": 0, "model": self.model},
        }
        folder = Path(tempfile.mkdtemp())
        return OpenAIGenerator(GeneratorConfig.model_validate(settings), folder)


@contextmanager
def serve_model(folder: Path, vllm: Path | None) -> Iterator[Server]:
    """Start transformers' server, or vLLM, with one thread."""
    port = free_port()
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if vllm is None:
        kind, model, version = "transformers", str(MODEL_FOLDER), transformers.__version__
        program = Path(sys.executable).with_name("transformers")
        command = [str(program), "serve", *place, "--device", "cpu", "--dtype", "float32"]
        command += ["--log-level", "error"]
    else:
        kind, model = "vllm", str(_write_with_vllm_names(folder / "model"))
        version = read_version(str(vllm))
        command = [str(vllm), "serve", model, *place, "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "256", "--enable-lora", "--max-loras", str(ARMS)]
    server = LocalServer(
        command,
        health=f"http://127.0.0.1:{port}/health",
        log=folder / "serve.log",
        environment={
            **{"OMP_NUM_THREADS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
            **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        },
        start_timeout=900,  # vLLM takes a minute, and three on a busy machine
    )
    try:
        (process,) = [
            each
            for each in psutil.Process().children(recursive=True)
            if str(port) in each.cmdline() and "-c" not in each.cmdline()
        ]
        yield Server(kind, version, f"http://127.0.0.1:{port}/v1", model, process)
    finally:
        server.stop()


def _write_with_vllm_names(folder: Path) -> Path:
    """Write the embedded model with the vision tower's weights named as vLLM 0.32 reads them.

    They have the names of transformers 4, which folders from the hub have too.
    """
    shutil.copytree(MODEL_FOLDER, folder)
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass(frozen=True)
class Way:
    """A way of answering questions, which returns what was said."""

    name: str
    answer: Callable[[Sequence[Item]], Answers]
    times: int = 1  # how many answers a question gets


def _measure_one_model(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Answer as many questions by each way. A server keeps what it read: it comes to them first."""
    model = _load_base()
    generator = server.generator(options.concurrency)
    rounds = _draw_rounds(options.items, options.rounds)
    requests = _make_requests([item for items in rounds for item in items], model, server)
    ways = [
        Way(
            "here",
            lambda items: _collect_answers(TransformersGenerator(batch_size=64), items, model),
        ),
        Way(
            "here, one at a time",
            lambda items: _collect_answers(TransformersGenerator(batch_size=1), items, model),
        ),
        Way("server", lambda items: _collect_answers(generator, items, model)),
        Way("bare", lambda items: _send_requests(server.url, items, requests)),
    ]
    found = _time_ways(ways, server, rounds)
    generator.close()
    own = found["server"]["seconds"]
    found["compared"] = {
        "server over here": round(found["here"]["seconds"] / own, 3),
        "server over here, one at a time": round(found["here, one at a time"]["seconds"] / own, 3),
        "server over bare": round(found["bare"]["seconds"] / own, 3),
    }
    return found


def _measure_arms(server: Server, options: argparse.Namespace, at: Path) -> dict[str, Any]:
    """Answer a fifth of a round's questions by each arm, side by side, and the others by one."""
    models = [_make_arm(at / f"arm-{number}", number) for number in range(ARMS)]
    generators = [server.generator(options.concurrency // ARMS or 1) for _ in models]
    alone, few = server.generator(options.concurrency), options.items

    def together(items: Sequence[Item]) -> Answers:
        with ThreadPoolExecutor(ARMS) as pool:
            said = pool.map(
                lambda arm: _collect_named_answers(arm[0], items[:few], arm[1]),
                zip(models, generators, strict=True),
            )
            return {key: text for answers in said for key, text in answers.items()}

    here = TransformersGenerator(batch_size=64)
    ways = [
        Way("one arm, here", lambda items: _collect_named_answers(models[0], items[:few], here)),
        Way("four arms", together, times=ARMS),
        Way(
            "one arm, four times the items",
            lambda items: _collect_named_answers(models[0], items[few:], alone),
            times=ARMS,
        ),
    ]
    found = _time_ways(ways, server, _draw_rounds((1 + ARMS) * few, options.rounds), few)
    four, one = (found[way.name]["seconds"] for way in ways[1:])
    found["compared"] = {"four arms over one": round(four / one, 3)}
    for generator in (*generators, alone):
        generator.close()
    return found


def _draw_rounds(items: int, rounds: int) -> list[Sequence[Item]]:
    """Return each round's questions, which no other one has; the first warms up."""
    world = BENCHMARKS["shapes"].items("report", data=None, protocol="official")
    return [world[number * items : (number + 1) * items] for number in range(rounds + 1)]


def _time_ways(
    ways: Sequence[Way], server: Server, rounds: Sequence[Sequence[Item]], few: int | None = None
) -> dict[str, dict[str, Any]]:
    """Let ways take turns; return each one's middle round.

    Args:
        ways: of which the first one's answers are those that others are compared with.
        server: the one that some of them ask.
        rounds: the questions of each.
        few: how many of them are asked, as often as a way says; None: all.
    """
    taken: dict[str, list[tuple[float, float, float]]] = {way.name: [] for way in ways}
    said: dict[str, Answers] = {}
    for number, items in enumerate(rounds):
        for way in ways:
            before = _read_clocks(server)
            said[way.name] = way.answer(items)
            if number:  # the first one warms up
                after = _read_clocks(server)
                taken[way.name].append(
                    (after[0] - before[0], after[1] - before[1], after[2] - before[2])
                )
    found: dict[str, dict[str, Any]] = {}
    asked = few or len(rounds[-1])
    for way in ways:
        seconds, own, theirs = (
            statistics.median(part) for part in zip(*taken[way.name], strict=True)
        )
        found[way.name] = {
            "seconds": round(seconds, 3),
            "items/s": round(asked * way.times / seconds, 2),
            "cpu here": round(own, 3),
            "cpu of the server": round(theirs, 3),
            "rounds": [round(each[0], 3) for each in taken[way.name]],
        }
        first = said[ways[0].name]
        if shared := said[way.name].keys() & first.keys():
            same = sum(said[way.name][item] == first[item] for item in shared)
            found[way.name]["same answers"] = f"{same} of {len(shared)}"
    return found


def _read_clocks(server: Server) -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), server.cpu_seconds()


def _collect_answers(generator: Any, items: Sequence[Item], model: AnsweringModel) -> Answers:
    said: Answers = {}
    generator.answer(
        items, model, LONGEST, lambda made: said.update((item.id, a.text) for item, a in made)
    )
    return said


def _collect_named_answers(model: AnsweringModel, items: Sequence[Item], generator: Any) -> Answers:
    """Return an arm's answers by its name and the item's."""
    said = _collect_answers(generator, items, model)
    return {f"{model.weights} {item}": text for item, text in said.items()}


def _load_base() -> AnsweringModel:
    model, processor = loading.load(ModelConfig(path="shapes"))
    return AnsweringModel(model=model, processor=processor, weights="base", base=str(MODEL_FOLDER))


def _make_arm(folder: Path, seed: int) -> AnsweringModel:
    """Return an arm with an adapter that changes what is said, as PEFT saves it."""
    import peft

    base = ModelConfig(path="shapes")
    model, processor = loading.load(base)
    targets = find_decoder_linears(model, LoraConfig(targets=("q_proj", "v_proj")))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=draw))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    processor.save_pretrained(folder)
    model, processor = loading.load(base, trained=folder)
    return AnsweringModel(
        model=model,
        processor=processor,
        weights=folder.name,
        base=str(MODEL_FOLDER),
        trained=folder,
    )


def _make_requests(
    items: Sequence[Item], model: AnsweringModel, server: Server
) -> dict[str, bytes]:
    """Return the bodies that the generator sends, by item."""
    from chip_core.evaluation.generators.openai import question_parts, request_keys

    extra = request_keys(server.kind, model, LONGEST)
    return {
        item.id: json.dumps(
            {
                "model": server.model,
                "messages": [{"role": "user", "content": question_parts(item)}],
                **extra,
            }
        ).encode()
        for item in items
    }


def _send_requests(url: str, items: Sequence[Item], requests: Mapping[str, bytes]) -> Answers:
    place = urlsplit(url)
    assert place.hostname is not None
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=600)
    said: Answers = {}
    for item in items:
        connection.request(
            "POST",
            f"{place.path}/chat/completions",
            requests[item.id],
            {"Content-Type": "application/json"},
        )
        answer = json.loads(connection.getresponse().read())
        said[item.id] = answer["choices"][0]["message"]["content"].strip()
    connection.close()
    return said


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
