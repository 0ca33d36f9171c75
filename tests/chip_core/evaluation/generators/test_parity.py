"""A server that does not answer as transformers does is refused, whatever it does otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load_file, save_file

from chip_core.evaluate import evaluate
from chip_core.evaluation.generators.delivery import make_model_folder
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.errors import TrialError

from ..judge.server import run_judge_server
from .transformers_server import SIX_ITEMS, Server, copy_model, make_arm_context, use_server

Arms = tuple[Path, Path]
#: Where the two adapters say the same, its own is not missed; where they do not, one of these.
REFUSED = r"does not apply the arm's adapter|answers \d of 4 questions like transformers, but"
TEMPLATE = (MODEL_FOLDER / "chat_template.jinja").read_text()


def test_another_template_is_another_prompt(tmp_path: Path, server: Server) -> None:
    template = TEMPLATE.replace("assistant: ", "assistant: the ")
    folder = copy_model(tmp_path / "changed", chat_template__jinja=template)
    assert template != TEMPLATE
    context = use_server(make_arm_context(tmp_path / "a", None), server.url, model=str(folder))
    with pytest.raises(
        TrialError, match="reads different prompts than transformers: 4 of 4 have oth"
    ):
        evaluate(context, "report", SIX_ITEMS)


def test_a_picture_that_is_dropped_on_the_way_is_another_prompt(
    tmp_path: Path, server: Server
) -> None:
    def without_pictures(handler: Any, number: int, body: Any) -> None:
        (message,) = body["messages"]
        message["content"] = [part for part in message["content"] if part["type"] == "text"]
        handler.send(requests.post(f"{server.url}/chat/completions", json=body).json())

    with run_judge_server(without_pictures) as between:
        context = use_server(make_arm_context(tmp_path, None), between.url)
        with pytest.raises(TrialError, match="4 of 4 have other tokens") as error:
            evaluate(context, "report", SIX_ITEMS)
    here, there = re.findall(r"(\d+) here, (\d+) there", str(error.value))[0]
    assert int(here) - int(there) == 36  # the picture's


def test_an_adapter_of_another_arm_or_without_effect_is_refused(
    tmp_path: Path, server: Server, arms: Arms
) -> None:
    other = make_arm_context(tmp_path / "other", arms[1])
    place = make_model_folder(other.answering_model, tmp_path / "other")
    context = make_arm_context(tmp_path / "a", arms[0])
    wrong = use_server(context, server.url, {context.weights: str(place)})
    with pytest.raises(TrialError, match=REFUSED):
        evaluate(wrong, "report", SIX_ITEMS)
    without = use_server(
        make_arm_context(tmp_path / "b", arms[0]), server.url, {context.weights: str(MODEL_FOLDER)}
    )
    with pytest.raises(TrialError, match="does not apply the arm's adapter: of [1-4] ans"):
        evaluate(without, "report", SIX_ITEMS)


def test_a_precision_that_changes_answers_is_refused_with_the_first_token(
    tmp_path: Path, server: Server
) -> None:
    folder = copy_model(tmp_path / "rounded")
    weights = load_file(folder / "model.safetensors")
    rounded = {name: w.to(torch.float8_e4m3fn).to(w.dtype) for name, w in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    context = use_server(make_arm_context(tmp_path / "a", None), server.url, model=str(folder))
    with pytest.raises(TrialError) as error:
        evaluate(context, "report", SIX_ITEMS)
    assert "evaluation.parity.share is 1 (item " in str(error.value)
    assert "whose log-probability is +" in str(error.value)  # transformers liked its own more
    # The same weights as an arm's own: it is they that are served, and they are taken.
    arm = use_server(make_arm_context(tmp_path / "b", folder), server.url)
    assert evaluate(arm, "report", SIX_ITEMS).metadata["parity"]["equal"] == 4
