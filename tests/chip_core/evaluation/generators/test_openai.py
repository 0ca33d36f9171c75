"""Arms answered by transformers' own server: what it says is what this process says."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip_core.config.trial import EvaluationConfig, TrialConfig
from chip_core.evaluate import evaluate
from chip_core.evaluation.generators.answering import generate_reference_answers
from chip_core.evaluation.generators.base import ServerLostError
from chip_core.evaluation.generators.delivery import SERVED_FOLDER
from chip_core.evaluation.generators.openai import OpenAIGenerator
from chip_core.evaluation.task import Decoding, Item, Picture
from chip_core.results import Progress
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_records

from ..judge.server import rate_question, run_judge_server
from .transformers_server import (
    SIX_ITEMS,
    Server,
    make_arm_context,
    make_generator_config,
    run_server,
    use_server,
)

Arms = tuple[Path, Path]


def read_responses(folder: Path) -> list[str]:
    return [row["response"] for row in read_records(folder / "responses" / "report-shapes.jsonl")]


def read_stored_items(folder: Path) -> list[str]:
    """Read the items of all answers on disk but transformers' own."""
    files = (folder / "answers").iterdir()
    rows = [read_records(file) for file in files]
    return [row["item"] for lines in rows for row in lines if "prompt_tokens" in row]


def test_each_arm_answers_by_its_own_weights_as_it_does_in_this_process(
    tmp_path: Path, server: Server, arms: Arms
) -> None:
    answers = []
    for arm in (None, *arms):
        name = "base" if arm is None else arm.name
        expected = evaluate(make_arm_context(tmp_path / "here" / name, arm), "report", SIX_ITEMS)
        folder = tmp_path / "there" / name
        context = use_server(make_arm_context(folder, arm), server.url)
        assert context.generator is not None
        generate_reference_answers(context, "report", SIX_ITEMS)
        found = evaluate(context, "report", SIX_ITEMS)
        context.generator.close()
        assert not (folder / SERVED_FOLDER).exists()  # merged weights are not left behind
        assert read_responses(folder) == read_responses(tmp_path / "here" / name)
        assert found.metrics == expected.metrics
        parity = found.metadata["parity"]
        assert (parity["items"], parity["equal"]) == (4, 4)
        assert parity["prompts"] == {"compared": 4, "differ": 0, "by": "count"}
        if arm is not None:
            assert parity["adapter"]["trained"] == parity["adapter"]["differ"] > 0
        assert found.metadata["generator"] == f"transformers 5 at {server.url}"
        # Each item is stored once.
        assert sorted(read_stored_items(folder)) == sorted({*read_stored_items(folder)})
        answers.append(read_responses(folder))
    assert len({tuple(each) for each in answers}) == 3


def test_a_trial_is_answered_by_a_server_with_all_that_it_trained(
    tmp_path: Path, server: Server, shapes_config: Callable[..., TrialConfig]
) -> None:
    """An adapter and, beside it, the projector; at a rate that changes answers."""
    engine = {"kind": "openai", "server": "transformers", "version": "5", "base_url": server.url}
    config = shapes_config(
        language_model="lora",
        training__max_steps=2,
        optimizer__lr=3e-3,
        benchmarks={"report": [SIX_ITEMS]},
        evaluation={"generator": engine, "parity": {"items": 4, "share": 1.0}},
    )
    found = run_trial(config, folder=tmp_path / "a")
    plain = config.model_copy(update={"evaluation": EvaluationConfig()})
    again = run_trial(plain, folder=tmp_path / "b", trained_model=tmp_path / "a" / "model")
    assert found.metrics == again.metrics
    assert read_responses(tmp_path / "a") == read_responses(tmp_path / "b")
    metadata = found.evaluations["report/shapes"].metadata
    assert metadata["parity"]["adapter"]["trained"] == metadata["parity"]["adapter"]["differ"]
    assert (tmp_path / "a" / "model" / "trained_parts.safetensors").exists()
    assert not (tmp_path / "a" / SERVED_FOLDER).exists()


def test_a_server_that_is_killed_and_started_again_gives_the_same_answers_each_once(
    tmp_path: Path,
) -> None:
    with run_server() as server:
        whole = use_server(make_arm_context(tmp_path / "whole", None), server.url)
        evaluate(whole, "report", SIX_ITEMS)

        def killing(progress: Progress) -> None:
            if progress.phase == "check shapes" and progress.done == 2:
                server.kill()

        killed = use_server(
            make_arm_context(tmp_path / "killed", None, report_progress=killing), server.url
        )
        with pytest.raises(TrialError, match="start it again; answers received so far are kept"):
            evaluate(killed, "report", SIX_ITEMS)
        left = read_stored_items(tmp_path / "killed")
        assert 2 <= len(left) < 6
        server.start()
        told: list[Progress] = []
        context = make_arm_context(
            tmp_path / "again", None, earlier=[tmp_path / "killed"], report_progress=told.append
        )
        found = evaluate(use_server(context, server.url), "report", SIX_ITEMS)
        assert [each.done for each in told if each.phase == "check shapes"][0] == len(left)
        assert found.metadata["taken_over"] == 4  # the sample, as the gate had it
        assert read_responses(tmp_path / "again") == read_responses(tmp_path / "whole")
        assert sorted(read_stored_items(tmp_path / "again")) == sorted(
            read_stored_items(tmp_path / "whole")
        )
        assert len(read_stored_items(tmp_path / "again")) == 6


def test_what_another_model_answered_ends_the_evaluation(tmp_path: Path) -> None:
    # The judge's server names another model as the one that made its replies.
    with run_judge_server(rate_question) as judge:
        context = use_server(make_arm_context(tmp_path, None), judge.url, server="other", model="m")
        with pytest.raises(TrialError, match="was answered by model judge-2026-01-01, not by m$"):
            evaluate(context, "report", SIX_ITEMS)
        assert read_stored_items(tmp_path) == []


def test_a_server_of_this_process_is_asked_past_the_environment_s_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    model, item = (
        make_arm_context(tmp_path, None).answering_model,
        Item(id="1", prompt="What?", pictures=()),
    )
    with run_judge_server(rate_question) as judge:
        generator = OpenAIGenerator(
            make_generator_config(judge.url), tmp_path, {"base": "m"}, key="k"
        )
        with pytest.raises(TrialError, match="was answered by model judge-2026-01-01, not by m$"):
            generator.answer([item], model, Decoding(max_new_tokens=2), print)


def test_a_picture_is_encoded_once_for_its_questions(tmp_path: Path) -> None:
    """Three pictures, five questions each in turn; each question has its own picture."""
    read: list[str] = []

    def picture(key: str) -> Picture:
        def open_it() -> Image.Image:
            read.append(key)
            return Image.new("RGB", (4, 4), key)

        return Picture(key=key, read=open_it)

    def sees(handler: Any, number: int, body: Any) -> None:
        shown, asked = body["messages"][0]["content"]
        held = base64.b64decode(shown["image_url"]["url"].split(",")[1])
        colour = Image.open(io.BytesIO(held)).getpixel((0, 0))
        handler.reply(f"{asked['text']} {colour}", model=body["model"])

    colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
    items = [
        Item(id=f"{key} {number}", prompt=f"{number}?", pictures=(picture(key),))
        for number in range(5)
        for key in colours
    ]
    model, responses = make_arm_context(tmp_path, None).answering_model, dict[str, str]()
    with run_judge_server(sees) as server:
        generator = OpenAIGenerator(
            make_generator_config(server.url, concurrency=8), tmp_path, {"base": "m"}
        )
        generator.answer(
            items,
            model,
            Decoding(max_new_tokens=2),
            lambda made: responses.update((item.id, response.text) for item, response in made),
        )
    assert responses == {
        f"{key} {number}": f"{number}? {colour}"
        for key, colour in colours.items()
        for number in range(5)
    }
    assert sorted(read) == sorted(colours)


def test_a_model_that_is_not_served_ends_it_with_what_to_do(tmp_path: Path, arms: Arms) -> None:
    def missing(handler: Any, number: int, body: Any) -> None:
        handler.send({"error": {"message": "no such model"}}, status=404)

    with run_judge_server(missing) as judge:
        context = use_server(make_arm_context(tmp_path, arms[0]), judge.url, server="other")
        with pytest.raises(TrialError) as error:
            evaluate(context, "report", SIX_ITEMS)
        (name,) = {call["model"] for call in judge.calls}
        assert name.startswith("chip-")
        assert f"serves no model {name}" in str(error.value)
        assert f"serve {arms[0]} there under that name" in str(error.value)
        assert "\n" not in str(error.value)


def test_an_adapter_is_loaded_under_the_name_of_its_weights(tmp_path: Path, arms: Arms) -> None:
    """What is asked of vLLM's endpoint; a server without it is told how to start."""
    asked: list[tuple[str, Any]] = []

    def vllm(handler: Any, number: int, body: Any) -> None:
        asked.append((handler.path, body))
        handler.send({}, status=404)

    with run_judge_server(vllm) as judge:
        context = use_server(make_arm_context(tmp_path, arms[0]), judge.url, server="vllm")
        assert isinstance(context.generator, OpenAIGenerator)
        with pytest.raises(
            TrialError, match="does not accept adapters while it runs: start it with --en"
        ):
            evaluate(context, "report", SIX_ITEMS)
        ((path, body),) = asked
        assert path == "/v1/load_lora_adapter"
        assert body["lora_path"] == str(arms[0]) and body["lora_name"].startswith("chip-")


def test_a_server_that_is_away_is_lost_when_an_adapter_is_loaded_too(
    tmp_path: Path, arms: Arms
) -> None:
    generator = OpenAIGenerator(
        make_generator_config("http://127.0.0.1:9/v1", server="vllm"), tmp_path
    )
    item = Item(id="1", prompt="What?", pictures=())
    for arm in (None, arms[0]):
        model = make_arm_context(tmp_path, arm).answering_model
        with pytest.raises(ServerLostError, match="no connection: start it again"):
            generator.answer([item], model, Decoding(max_new_tokens=2), print)
