"""Rows that a model's processor refuses are told, or left out, before its training begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import AddedToken

from chip_core.config.trial import TrialConfig
from chip_core.data.checks import ProcessorChecker
from chip_core.data.preferences import load_pairs
from chip_core.models import loading
from chip_core.training.batches import load_checked_pairs
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError
from orchestrator.cli import main

from .. import families
from ..trainings import read_losses
from . import files
from .test_training import write_shapes_rows

Configured = Callable[..., TrialConfig]
WIDE = (2010, 10)  # 201:1


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A tiny Qwen2.5-VL; `<|video_pad|>` is no special token of its tokenizer."""
    model, processor = families.build("qwen2_5_vl")
    words = processor.tokenizer
    words.add_tokens([AddedToken("<|video_pad|>", special=False)])
    folder = tmp_path / "qwen"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    files.write_images(tmp_path, 1)
    (tmp_path / "images" / "wide.png").write_bytes(files.make_image_bytes("PNG", WIDE))
    (tmp_path / "images" / "tall.png").write_bytes(files.make_image_bytes("PNG", WIDE[::-1]))
    (tmp_path / "images" / "long.png").write_bytes(files.make_image_bytes("PNG", (1900, 100)))
    made = [
        files.make_path_row(0),
        files.make_path_row(0, id="wide", image="images/wide.png"),
        files.make_path_row(0, id="tall", image="images/tall.png"),
        files.make_path_row(0, id="long", image="images/long.png"),
        files.make_path_row(0, id="rejected", rejected_image="images/wide.png"),
        files.make_path_row(
            0, id="text", chosen="the <|image_pad|> tag", prompt="what is <|im_end|> ?"
        ),
        files.make_path_row(0, id="video", rejected="a <|video_pad|> dog"),
        files.make_path_row(0, id="asked", prompt="a <|video_pad|> ?"),
    ]
    return files.write_lines(tmp_path / "a.jsonl", made)


REFUSED = {
    2: "an image of 2010 x 10 pixels is refused by the model's processor (absolute aspect ratio "
    "must be smaller than 200, got 201.0): crop it, or leave it out",
    3: "an image of 10 x 2010 pixels is refused by the model's processor (absolute aspect ratio "
    "must be smaller than 200, got 201.0): crop it, or leave it out",
    5: "an image of 2010 x 10 pixels is refused by the model's processor (absolute aspect ratio "
    "must be smaller than 200, got 201.0): crop it, or leave it out",
    7: "rejected holds <|video_pad|>, a special token that the model's tokenizer cannot encode "
    "as text: remove it",
    8: "prompt holds <|video_pad|>, a special token that the model's tokenizer cannot encode as "
    "text: remove it",
}


def test_data_check_tells_what_a_model_refuses(
    qwen: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps({"model": str(qwen)}))
    for named in (["--model", str(qwen)], ["--recipe", str(tmp_path / "own.yaml")]):
        with pytest.raises(SystemExit) as ended:
            main(["data", "check", str(rows), *named, "--json"])
        assert ended.value.code == 1
        found = json.loads(capsys.readouterr().out)
        assert {bad["line"]: bad["reason"] for bad in found["bad"]} == REFUSED
        # `the`, `<|`, …: what splits is a matter of the tokenizer; a mark alone would be one.
        assert found["figures"]["chosen, tokens"]["most"] > 3
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(rows)])
    assert ended.value.code is None or ended.value.code == 0


def test_a_training_begins_with_the_same(qwen: Path, rows: Path) -> None:
    def config(on_bad_row: str) -> TrialConfig:
        return TrialConfig.model_validate(
            {"model": str(qwen), "data": {"source": str(rows), "on_bad_row": on_bad_row}}
        )

    with pytest.raises(TrialError, match="^5 of 8 rows are bad: .*a.jsonl line 2: an image of 20"):
        load_checked_pairs(config("fail"), lambda progress: None)
    pairs = load_checked_pairs(config("skip"), lambda progress: None)
    assert [pair.id for pair in pairs] == ["pair-0", "long", "text"]
    assert [bad.location.row for bad in pairs.skipped] == list(REFUSED)


def test_only_odd_sizes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = loading.load_processor_only(TrialConfig(model="shapes").model)
    rows = ProcessorChecker(processor)
    tried: list[tuple[int, int]] = []

    def note(image: Image.Image) -> str | None:
        tried.append(image.size)
        return "no"

    monkeypatch.setattr(rows, "_try_processor", note)
    sizes = [(64, 64), (64, 1280), (1281, 64), (63, 64), (63, 64)]
    assert [rows._size_error(*size) for size in sizes] == [None, None, "no", "no", "no"]
    assert tried == [(1281, 64), (63, 64)]  # each once


def test_marks_in_texts_are_trained_on_as_text(shapes_config: Configured, tmp_path: Path) -> None:
    rows = write_shapes_rows(tmp_path / "d", 6)
    changes: list[dict[str, Any]] = [
        {"chosen": "an <image> tag and </s> ."},
        {"rejected": "<pad> </s>"},
        {"question": "what is </s> ?"},
    ]
    for row, change in zip(rows, changes, strict=False):
        row.update(change)
    path = files.write_lines(tmp_path / "d" / "a.jsonl", rows)
    config = shapes_config(data__source=str(path))
    result = run_trial(config, folder=tmp_path / "trial")
    assert result.data["pairs"] == 6
    assert len(read_losses(tmp_path / "trial")) == result.steps > 0
    assert len(load_pairs(config.data)) == 6
