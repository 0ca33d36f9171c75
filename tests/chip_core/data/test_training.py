"""A trial on one's own data: bad rows, cut responses, what is recorded."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import CutCount, PairEncoder
from chip_core.data.preferences import PreferencePair, load_pairs
from chip_core.models import loading
from chip_core.results import Progress, read_result
from chip_core.shapes import world
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers

from ..trainings import read_losses
from . import files

Configured = Callable[..., TrialConfig]


def write_shapes_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the embedded world's first pairs as a user's own rows, and write their images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        pair = world.make_preference_pair("train", index)
        pair.image.save(folder / "images" / f"{index}.png")
        rows.append(
            {
                "id": pair.id,
                "image": f"images/{index}.png",
                "question": pair.question,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
            }
        )
    return rows


def test_the_same_pairs_train_the_same_from_a_file(
    shapes_config: Configured, tmp_path: Path
) -> None:
    path = files.write_lines(tmp_path / "d" / "a.jsonl", write_shapes_rows(tmp_path / "d", 12))
    run_trial(shapes_config(data__limit=12), folder=tmp_path / "shapes")
    told: list[Progress] = []
    result = run_trial(
        shapes_config(data__source=str(path)), folder=tmp_path / "own", report=told.append
    )
    assert read_losses(tmp_path / "own") == read_losses(tmp_path / "shapes")
    assert result.data == {"pairs": 12, "skipped": 0, "cut_responses": 0, "cut_tokens": 0}
    assert read_result(tmp_path / "own") == result


def test_a_result_of_before_is_read(shapes_config: Configured, tmp_path: Path) -> None:
    old = {"steps": 3, "evaluations": {}, "seconds": {"train": 1.0}}
    (tmp_path / "result.json").write_text(json.dumps(old))
    result = read_result(tmp_path)
    assert result is not None
    assert result.data == {}


def test_a_bad_row_fails_before_the_first_step(shapes_config: Configured, tmp_path: Path) -> None:
    rows = write_shapes_rows(tmp_path / "d", 6)
    rows[3]["chosen"] = rows[3]["rejected"]
    path = files.write_lines(tmp_path / "d" / "a.jsonl", rows)
    folder = tmp_path / "trial"
    with pytest.raises(TrialError, match="^1 of 6 rows are bad: .*a.jsonl line 4: chosen and reje"):
        run_trial(shapes_config(data__source=str(path)), folder=folder)
    assert not (folder / "curves.jsonl").exists()
    config = shapes_config(data__source=str(path), data__on_bad_row="skip")
    result = run_trial(config, folder=folder)
    assert (result.data["pairs"], result.data["skipped"]) == (5, 1)
    assert json.loads((folder / "result.json").read_text())["data"]["skipped"] == 1


def test_how_far_the_check_is_is_told_once_a_second(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_images(tmp_path, 1)
    path = files.write_lines(tmp_path / "a.jsonl", [files.make_path_row(0) for _ in range(8)])
    seconds = itertools.count(step=0.4)  # each look at the clock: 0.4 s later
    clock = SimpleNamespace(monotonic=lambda: next(seconds), perf_counter=time.perf_counter)
    monkeypatch.setattr("chip_core.training.batches.time", clock)
    told: list[int] = []

    def report(progress: Progress) -> None:
        if progress.phase == "check data":
            told.append(progress.done)
            assert progress.total == 8

    config = shapes_config(data__source=str(path), training__max_steps=1)
    run_trial(config, folder=tmp_path / "out", report=report)
    # 0 at the start; rows 1 and 2 at 0.4 and 0.8 s, row 3 at 1.2 s, which is told at 1.6 s, …
    assert told == [3, 6]


def test_given_rejected_images_are_asked_of_every_row(
    shapes_config: Configured, tmp_path: Path
) -> None:
    rows = write_shapes_rows(tmp_path / "d", 6)
    for row in rows[1:]:
        row["rejected_image"] = "images/0.png"
    path = files.write_lines(tmp_path / "d" / "a.jsonl", rows)
    given = {"data__source": str(path), "rejected_image": "given"}
    with pytest.raises(TrialError, match="line 1: rejected image: the row has none"):
        run_trial(shapes_config(**given), folder=tmp_path / "one")
    result = run_trial(shapes_config(**given, data__on_bad_row="skip"), folder=tmp_path / "two")
    assert result.data["skipped"] == 1
    # Without a visual term no row needs one.
    result = run_trial(shapes_config(**given, objective="dpo"), folder=tmp_path / "three")
    assert result.data["skipped"] == 0


def test_responses_are_cut_and_counted_images_are_not(shapes_config: Configured) -> None:
    _, processor = loading.load(TrialConfig(model="shapes").model)
    pairs = list(load_pairs(shapes_config(data__limit=3).data))
    batch = PairEncoder(processor, shapes_config(), pairs).encode_batch(range(3))
    count = CutCount(Workers())
    count.add(batch)
    assert count.totals() == {"cut_responses": 0, "cut_tokens": 0}
    lengths = [
        int(length)
        for part in (batch.chosen, batch.rejected)
        for length in batch.prompts.mask.sum(1) + part.mask.sum(1)
    ]
    limit = max(16, max(lengths[:3]) - 4)
    short = PairEncoder(processor, shapes_config(training__max_length=limit), pairs)
    for _ in range(2):  # a second epoch counts nothing twice
        cut = short.encode_batch(range(3))
        count.add(cut)
    assert count.totals() == {
        "cut_responses": sum(length > limit for length in lengths),
        "cut_tokens": sum(max(length - limit, 0) for length in lengths),
    }
    assert count.totals()["cut_responses"] > 0
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch.prompts.ids == image).sum() == (cut.prompts.ids == image).sum()
    for part in (cut.chosen, cut.rejected):
        assert (cut.prompts.mask.sum(1) + part.mask.sum(1)).max() <= limit


def test_a_prompt_that_does_not_fit_fails(shapes_config: Configured, tmp_path: Path) -> None:
    path = files.write_lines(tmp_path / "d" / "a.jsonl", write_shapes_rows(tmp_path / "d", 4))
    config = shapes_config(data__source=str(path), training__max_length=20)
    with pytest.raises(TrialError, match="training.max_length is 20, but a prompt with its image"):
        run_trial(config, folder=tmp_path / "trial")


def test_pairs_are_pairs_of_either_kind(shapes_config: Configured) -> None:
    for pair in load_pairs(shapes_config(data__limit=2).data):
        assert isinstance(pair, PreferencePair)
        assert pair.rejected_image is None
