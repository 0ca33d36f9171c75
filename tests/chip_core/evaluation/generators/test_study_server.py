"""The life of a study's server, by a program that starts as vLLM does and answers nothing."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from chip_core.config.benchmark import GeneratorConfig
from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.evaluation.generators import choice, study_server, vllm
from chip_core.evaluation.generators.shared import SharedGenerator
from chip_core.evaluation.generators.study_server import Address, StudyServer, read_address
from chip_core.evaluation.task import Decoding, Item
from chip_core.utils.errors import TrialError
from chip_core.utils.files import write_json

from .fake_vllm import QUICK, write_program
from .transformers_server import make_arm_context

SETTINGS = GeneratorConfig.model_validate({"kind": "vllm", "serves": "study", "retries": 0})


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.PROGRAM_VARIABLE, str(write_program(tmp_path, QUICK)))
    monkeypatch.setattr(study_server, "_CHECK_INTERVAL", 0.05)


def make_server(folder: Path, **given: Any) -> StudyServer:
    return StudyServer(SETTINGS, ModelConfig(path="shapes"), folder, rank=16, **given)


def find_process(log: Path) -> psutil.Process:
    return psutil.Process(int(log.read_text().split()[1]))


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_it_is_started_again_once_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    folder, lost = tmp_path / "engine", list[str]()
    with make_server(folder, devices=["2", "3"], on_lost=lost.append) as running:
        first = read_address(running.address)
        assert (first.number, first.state, first.label) == (1, "up", "vLLM 0.0.1")
        assert stat.S_IMODE(running.address.stat().st_mode) == 0o600
        said = (folder / "vllm-1.log").read_text()
        assert " 2,3 serve " in said and "--host 127.0.0.1" in said
        assert "--enable-lora --max-loras 8 --max-lora-rank 16" in said
        one = find_process(folder / "vllm-1.log")
        one.kill()
        wait_until(lambda: read_address(running.address).number == 2)
        second = read_address(running.address)
        assert second.state == "up" and second.key != first.key
        assert lost == []
        two = find_process(folder / "vllm-2.log")
        two.kill()
        wait_until(lambda: lost != [])
        gone = read_address(running.address)
        assert gone.state == "gone" and "was already restarted once" in gone.why
        generator = SharedGenerator(SETTINGS, tmp_path, running.address)
        asked = make_arm_context(tmp_path, None).answering_model
        with pytest.raises(TrialError, match="restarted once .*; answers received so far are kept"):
            generator.answer(
                [Item(id="1", prompt="?", pictures=())], asked, Decoding(max_new_tokens=1), print
            )
    with pytest.raises(TrialError, match="has ended with its study: run the study again"):
        SharedGenerator(SETTINGS, tmp_path, running.address)
    assert not (one.is_running() or two.is_running())


def test_a_full_disk_as_it_is_started_again_ends_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = list[str]()
    with make_server(tmp_path / "engine", on_lost=lost.append) as running:

        def full(*what: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(study_server, "write_private_json", full)
        find_process(tmp_path / "engine" / "vllm-1.log").kill()
        wait_until(lambda: lost != [])
        assert "could not be restarted: [Errno 28] No space left on device" in lost[0]
        with pytest.raises(TrialError):  # no trial waits for what nobody will write
            read_address(running.address)


def test_a_port_that_another_program_has_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_server(tmp_path / "other") as other, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and never answers
        taken = int(read_address(other.address).base_url.rpartition(":")[2].removesuffix("/v1"))
        left, free = [taken, silent.getsockname()[1]], vllm.free_port
        monkeypatch.setattr(vllm, "free_port", lambda: left.pop() if left else free())
        with make_server(tmp_path / "own") as own:
            found = read_address(own.address).base_url
            assert left == [] and found != read_address(other.address).base_url


def test_a_start_is_given_up_where_the_study_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()
    with (
        pytest.raises(TrialError, match="was stopped before it had started"),
        make_server(tmp_path / "engine", should_stop=lambda: asked.is_set() or asked.set() is None),
    ):
        pass
    assert not (tmp_path / "engine" / study_server.ADDRESS_FILE).exists()
    children = psutil.Process().children(recursive=True)
    assert not [each for each in children if str(tmp_path) in " ".join(each.cmdline())]


def test_ctrl_c_at_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    with make_server(tmp_path / "engine") as running:
        process = find_process(tmp_path / "engine" / "vllm-1.log")
        guard = process.parent()
        assert guard is not None
        groups = {os.getpgid(process.pid), os.getpgid(guard.pid)}
        assert os.getpgid(0) not in groups and len(groups) == 2
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: read_address(running.address).number == 2)


def test_another_machine_s_server_is_refused(tmp_path: Path) -> None:
    known = Address(number=1, state="up", label="vLLM 1", weights="w", machine="another")
    write_json(tmp_path / "server.json", vars(replace(known)))
    with pytest.raises(TrialError, match="the study's server is on another, which .*serves: trial"):
        read_address(tmp_path / "server.json")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"projector": "trained"}, "but no arm trains an adapter on its language model alone"),
        ({"lora__rank": 1024}, "vLLM accepts adapters of rank up to 512, but this one has 1024"),
    ],
)
def test_what_one_server_cannot_hold_is_said_beforehand(
    changes: dict[str, Any], problem: str | None, shapes_config: Callable[..., TrialConfig]
) -> None:
    config = shapes_config(
        language_model="lora",
        **{"vision_encoder": "frozen", "projector": "frozen", **changes},
        evaluation={"generator": {"kind": "vllm", "serves": "study"}},
    )
    found = choice.sharing_problems([config])
    assert (found == []) if problem is None else (problem in found[0])
    other = config.model_copy(update={"model": ModelConfig(path="shapes", dtype="bf16")})
    assert "this study has 2 base models" in choice.sharing_problems([config, other])[0]
