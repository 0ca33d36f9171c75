"""How vLLM is started, and that a server that a trial starts ends with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chip_core.config.benchmark import EvaluationConfig, GeneratorConfig
from chip_core.config.trial import BenchmarksConfig, ModelConfig
from chip_core.evaluate import evaluate
from chip_core.evaluation.generators import generator_problems, missing_requirements, open_generator
from chip_core.evaluation.generators.answering import generate_reference_answers
from chip_core.evaluation.generators.delivery import Delivery, arm_name
from chip_core.evaluation.generators.local_server import LocalServer
from chip_core.evaluation.generators.vllm import VllmGenerator, find_program, serve_command
from chip_core.evaluation.task import Decoding, Item
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.errors import TrialError

from .transformers_server import (
    SIX_ITEMS,
    find_free_port,
    make_adapter,
    make_arm_context,
    make_generator_config,
)

Arms = tuple[Path, Path]


def test_the_command_line_names_weights_by_their_hash_and_listens_on_this_machine(
    tmp_path: Path, arms: Arms
) -> None:
    given = {"max_model_len": 256, "enforce_eager": True, "limit_mm_per_prompt": {"image": 1}}
    settings = GeneratorConfig.model_validate({"kind": "vllm", "options": given})
    base = make_arm_context(tmp_path, None).answering_model
    name = arm_name("base")
    assert serve_command("vllm", settings, base, model_folder=None, port=8123) == [
        *("vllm", "serve", str(MODEL_FOLDER), "--host", "127.0.0.1", "--port", "8123"),
        *("--dtype", "float32", "--generation-config", "vllm", "--seed", "0"),
        *("--served-model-name", name),
        *("--max-model-len=256", "--enforce-eager", '--limit-mm-per-prompt={"image": 1}'),
    ]
    arm = replace(make_arm_context(tmp_path, arms[0]).answering_model, bf16=True)
    command = serve_command("vllm", settings, arm, model_folder=None, port=1)
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert command[command.index("--lora-modules") + 1] == f"{arm_name('one')}={arms[0]}"
    assert command[command.index("--max-lora-rank") + 1] == "8"  # the least that holds 4
    assert command[command.index("--served-model-name") + 1] != arm_name("one")
    whole = serve_command("vllm", settings, arm, model_folder=tmp_path, port=1)
    assert whole[2] == str(tmp_path) and "--enable-lora" not in whole
    assert whole[whole.index("--served-model-name") + 1] == arm_name("one")


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("served-model-name", "x", "cannot be set: choose from max_model_len, "),
        ("dtype", "x", "cannot be set: write model.dtype"),
        ("middlewar", "x", "cannot be set: "),  # argparse takes the start of a name for it
        ("kv_transfer_config", {"kv_connector_module_path": "x"}, "cannot be set: "),
        ("tensor-parallel-size", "2", "is not a whole number of 1 or more"),
        ("quantization", "--middleware=x", "begins with -"),
        ("distributed-executor-backend", "os.path.Executor", "is none of mp, ray, uni"),
    ],
)
def test_only_options_that_run_nothing_are_given(option: str, value: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GeneratorConfig.model_validate({"kind": "vllm", "options": {option: value}})


def test_weights_in_four_bits_are_not_served_whole() -> None:
    answering = EvaluationConfig.model_validate({"generator": "vllm"})
    model = ModelConfig(path="shapes", quantize="nf4")
    (line,) = generator_problems(answering, BenchmarksConfig(), model)
    assert line.endswith("write evaluation.generator: transformers, or model.quantize: none")


def test_a_vllm_that_is_not_there_is_said_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHIP_ABLATE_VLLM", "no-such-program")
    (line,) = missing_requirements(EvaluationConfig.model_validate({"generator": "vllm"}))
    assert line.startswith("evaluation.generator: there is no program `vllm`: pip install ")


def test_an_adapter_beyond_the_language_model_is_served_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 0.0.1 && exit\necho "$@"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("CHIP_ABLATE_VLLM", str(program))
    arm = make_adapter(tmp_path / "tower", 1, tower=True)
    model = make_arm_context(tmp_path, arm).answering_model
    generator = VllmGenerator(GeneratorConfig.model_validate("vllm"), tmp_path)
    item = Item(id="1", prompt="What?", pictures=())
    with pytest.raises(TrialError, match=r"did not start: serve \S*/.served/chip-") as error:
        generator.answer([item], model, Decoding(max_new_tokens=2), print)
    generator.close()
    assert "--lora-modules" not in str(error.value)
    loads = make_generator_config("http://127.0.0.1:9/v1", server="vllm")
    with pytest.raises(TrialError, match="but this arm trained an adapter on its vision_encoder: "):
        Delivery(loads, None, tmp_path, {}, str).deliver(model)


def is_listening(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def start_server(log: Path, port: int) -> LocalServer:
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    health = f"http://127.0.0.1:{port}/"
    return LocalServer(command, health=health, log=log, environment={}, start_timeout=60)


def test_a_server_ends_when_it_is_stopped_and_when_who_started_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy"):  # which do not reach a server on this machine
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    port = find_free_port()
    server = start_server(tmp_path / "log", port)
    assert is_listening(port)
    server.stop()
    assert not is_listening(port)
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from tests.chip_core.evaluation.generators.test_vllm import start_server; "
        f"start_server(Path('log'), {port}); print('up', flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[4]
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (-signal.SIGKILL, "up\n"), run.stderr
    until = time.monotonic() + 30
    while is_listening(port) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_listening(port)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('no such\\nengine')", "engine"),
        ("import os; os.kill(os.getpid(), 9)", "no output, exit code 137"),
    ],
)
def test_a_server_that_does_not_start_says_its_last_line(
    code: str, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", code]
    with pytest.raises(TrialError, match=rf"did not start: {said} \(.*/log\)$"):
        LocalServer(
            command,
            health="http://127.0.0.1:9/",
            log=tmp_path / "log",
            environment={},
            start_timeout=60,
        )


@pytest.mark.gpu
def test_vllm_answers_each_arm_as_transformers_does(tmp_path: Path, arms: Arms) -> None:
    if find_program() is None:
        pytest.skip("vLLM is not installed")
    config = EvaluationConfig.model_validate(
        {"generator": {"kind": "vllm", "options": {"max_model_len": 256}}}
    )
    for arm in (None, *arms):
        folder = tmp_path / ("base" if arm is None else arm.name)
        context = make_arm_context(folder, arm)
        context.model.to("cuda")
        with open_generator(config, folder) as generator:
            context = replace(context, generator=generator, parity=config.parity)
            generate_reference_answers(context, "report", SIX_ITEMS)
            found = evaluate(context, "report", SIX_ITEMS)
        assert next(context.model.parameters()).device == torch.device("cuda:0")
        assert found.metadata["parity"]["equal"] == found.metadata["parity"]["items"] == 6
        assert found.metadata["parity"]["prompts"]["by"] == "ids"
