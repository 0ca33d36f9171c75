"""Rows with a third response, a second image, and scores: read where an objective asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip_core.config.trial import DataConfig
from chip_core.data.checks import ValidRow, check_rows
from chip_core.data.formats.extra_columns import (
    RowRequirements,
    find_objective_problem,
    row_requirements,
)
from chip_core.data.preferences import load_pairs
from chip_core.data.rows import BadRow
from chip_core.data.source import open_source
from chip_core.objectives.config import ObjectiveConfig
from chip_core.utils.errors import TrialError

ROW: dict[str, Any] = {
    "id": "1",
    "image": "a.png",
    "prompt": "What is it?",
    "chosen": "A cat.",
    "rejected": "A dog. It runs.",
    "other": "A grey cat.",
    "second_image": "b.png",
    "second_prompt": "What is that?",
    "clip_scores": {"chosen": 0.5, "rejected": 0.25},
    "opa_scores": {
        "rejected_score": [["A dog.", 2.5], ["It runs.", 1]],
        "revised_score": [["A grey cat.", 2.0]],
        "revised_image": [["A grey cat.", 3.0]],
    },
}
ALL = RowRequirements(other=True, second_image=True, columns=("clip_scores", "opa_scores"))


def write_source(folder: Path, *rows: dict[str, Any]) -> DataConfig:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / name)
    (folder / "broken.png").write_bytes(b"no picture")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(source=str(file))


def test_columns_that_an_objective_reads_are_read(tmp_path: Path) -> None:
    (pair,) = load_pairs(write_source(tmp_path, ROW), requirements=ALL)
    assert (pair.other, pair.second_prompt) == ("A grey cat.", "What is that?")
    assert pair.second_image is not None
    assert pair.second_image.getpixel((0, 0)) == (0, 0, 255)
    assert pair.scores["clip_scores/rejected"] == 0.25
    assert pair.scores["opa_scores/rejected_score"] == (("A dog.", 2.5), ("It runs.", 1.0))


@pytest.mark.parametrize(
    "said",
    [
        [{"role": "assistant", "content": "A grey cat."}],
        [{"role": "assistant", "content": [{"type": "text", "text": "A grey cat."}]}],
        '[{"role": "assistant", "content": "A grey cat."}]',
    ],
)
def test_a_third_response_is_read_as_trl_writes_responses(tmp_path: Path, said: Any) -> None:
    (pair,) = load_pairs(write_source(tmp_path, {**ROW, "other": said}), requirements=ALL)
    assert pair.other == "A grey cat."


def test_columns_that_no_objective_reads_are_ignored(tmp_path: Path) -> None:
    wrong = {"other": 7, "second_image": "broken.png", "clip_scores": "x"}
    (pair,) = load_pairs(write_source(tmp_path, {**ROW, **wrong}))
    assert (pair.other, pair.second_image, dict(pair.scores)) == (None, None, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"other": None}, "no other, a third response, which the objective reads"),
        ({"other": " "}, "other is empty"),
        ({"second_image": None}, "no second_image, which the objective reads"),
        ({"second_image": "c.png"}, "second image: "),
        ({"second_image": "broken.png"}, "second image: "),
        ({"clip_scores": None}, "no clip_scores, which the objective reads: write {"),
        ({"clip_scores": {"chosen": 1.0}}, "clip_scores.rejected is missing"),
        ({"clip_scores": {"chosen": True, "rejected": 1}}, "clip_scores.chosen is not a finite"),
        ({"opa_scores": {**ROW["opa_scores"], "revised_score": []}}, "opa_scores.revised_score is"),
        ({"other": [{"content": "A cat."}]}, "other holds a message without a role"),
        ({"other": [{"role": "assistant", "content": ["A"]}]}, "other holds a part of type None"),
        ({"clip_scores": {"chosen": 10**400, "rejected": 1}}, "clip_scores.chosen is not a finite"),
        (
            {"opa_scores": {**ROW["opa_scores"], "revised_score": [["A dog.", 2.0]]}},
            "opa_scores.revised_score: 'A dog.' is not the next sentence of its response",
        ),
        (
            {
                "opa_scores": {
                    **ROW["opa_scores"],
                    "rejected_score": [["It runs.", 1], ["A dog.", 2]],
                }
            },
            "opa_scores.rejected_score: 'A dog.' is not the next sentence of its response",
        ),
        ({"opa_scores": {**ROW["opa_scores"], "revised_image": [["A"]]}}, "opa_scores.revised_i"),
    ],
)
def test_a_row_that_lacks_it_is_bad(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    data = write_source(tmp_path, ROW, {**ROW, **change, "id": "2"})
    good, bad = check_rows(open_source(data), requirements=ALL)
    assert isinstance(good, ValidRow) and isinstance(bad, BadRow)
    assert bad.location.row == 2 and bad.reason.startswith(reason)
    with pytest.raises(TrialError, match="1 of 2 rows are bad"):
        load_pairs(data, requirements=ALL)


def test_objectives_name_the_columns_that_they_read() -> None:
    def asked(preset: str) -> list[str]:
        return row_requirements(ObjectiveConfig.model_validate(preset)).names

    assert asked("symmpo") == ["other", "second_image"]
    assert asked("opadpo") == ["other", "opa_scores"]
    assert asked("dama") == ["image_text_scores"]
    assert asked("dadpo") == ["clip_scores"]
    assert [asked(preset) for preset in ("chip", "mpo", "tpo", "vdpo", "rdpo", "aot")] == [[]] * 6


def test_the_embedded_world_has_none_of_it(tmp_path: Path) -> None:
    shapes, symmpo = DataConfig(), ObjectiveConfig.model_validate("symmpo")
    reason = find_objective_problem(shapes, symmpo)
    assert reason is not None and "symmpo reads other, second_image of each row" in reason
    assert find_objective_problem(shapes, ObjectiveConfig()) is None
    assert find_objective_problem(write_source(tmp_path, ROW), symmpo) is None
    with pytest.raises(TrialError, match="have no other, second_image"):
        load_pairs(shapes, requirements=row_requirements(symmpo))
