"""Pairs of a model's own answers: what becomes one, what is written, and when nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chip_core.config.benchmark import DataPaths
from chip_core.config.pairs import PairsConfig
from chip_core.config.trial import DataConfig
from chip_core.data.preferences import load_pairs
from chip_core.pairs.make import NARROW, ONE_ANSWER, TIE, UNRANKED, SamplingResult, choose_pair
from chip_core.pairs.ranking import Score
from chip_core.results import Progress
from chip_core.sample_pairs import sample_pairs
from chip_core.shapes import world
from chip_core.utils.errors import StoppedError, TrialError, UserError

SETTINGS: dict[str, Any] = {"answers": 4, "temperature": 1.5, "max_new_tokens": 32}
PROMPTS = 6


def all_ties(prompt: Any, answers: list[str]) -> list[float]:
    """A rule of one's own that finds no difference."""
    return [0.0] * len(answers)


def shortest(prompt: Any, answers: list[str]) -> list[float | None]:
    """A rule of one's own; it has nothing to say of the first answer."""
    return [None, *(-float(len(text)) for text in answers[1:])]


def one_too_few(prompt: Any, answers: list[str]) -> list[float]:
    """No rule at all."""
    return [0.0]


def sample_into(
    folder: Path, *, batch: int = 8, report: Any = None, **settings: Any
) -> SamplingResult:
    torch.set_num_threads(1)
    return sample_pairs(
        "shapes",
        DataConfig(source="shapes", limit=PROMPTS),
        PairsConfig(**{**SETTINGS, **settings}),
        folder=folder,
        data_paths=DataPaths(),
        batch_size=batch,
        report=report or (lambda progress: None),
    )


def read_files(folder: Path) -> dict[str, bytes]:
    """Read all files that a folder shows."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder): path for path in files}
    return {
        str(name): path.read_bytes()
        for name, path in named.items()
        if not name.parts[0].startswith(".")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    sample_into(folder)
    return folder


def interrupt_after(batches: int) -> Callable[[Progress], None]:
    told = 0

    def report(progress: Progress) -> None:
        nonlocal told
        told += progress.phase == "sample answers"
        if told > batches:
            raise StoppedError("killed")

    return report


def test_killed_twice_it_is_the_same_to_the_byte(undisturbed: Path, tmp_path: Path) -> None:
    for batches in (1, 2):
        with pytest.raises(StoppedError):
            sample_into(tmp_path, report=interrupt_after(batches))
        assert read_files(tmp_path) == {}
        (answers,) = (tmp_path / ".sampled").rglob("*.jsonl")
        answers.write_bytes(answers.read_bytes()[:-9])  # in the middle of a line
    made = sample_into(tmp_path)
    assert read_files(tmp_path) == read_files(undisturbed)
    assert made.pairs + sum(made.dropped.values()) == PROMPTS
    assert sample_into(tmp_path).sampled == 0 < made.sampled


def test_the_batch_changes_no_pair(undisturbed: Path, tmp_path: Path) -> None:
    sample_into(tmp_path, batch=1)
    assert read_files(tmp_path) == read_files(undisturbed)


def test_rows_are_the_best_against_the_worst_and_can_be_trained_on(undisturbed: Path) -> None:
    pairs = load_pairs(DataConfig(source=str(undisturbed)))
    rows = [json.loads(line) for line in (undisturbed / "pairs.jsonl").read_text().splitlines()]
    assert 0 < len(pairs) == len(rows) < PROMPTS
    for pair, row in zip(pairs, rows, strict=True):
        scene = world.parse_scene_id(pair.id)
        found = [
            world.compare_caption(scene, text).invented for text in (pair.chosen, pair.rejected)
        ]
        assert [-row["score_chosen"], -row["score_rejected"]] == found
        assert found[0] < found[1]
        assert pair.image.tobytes() == world.draw_scene(scene).tobytes()
    provenance = json.loads((undisturbed / "provenance.json").read_text())
    assert provenance["ranker"] == {"ranker": "chair", "version": "shapes-1"}
    assert provenance["counts"]["pairs"] == len(rows)


def test_ties_alone_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^no pair: of {PROMPTS} prompts .*tie: best and worst"):
        sample_into(tmp_path, ranker=f"{__name__}:all_ties")
    assert read_files(tmp_path) == {}


def test_a_rule_of_ones_own_ranks(tmp_path: Path) -> None:
    sample_into(tmp_path, ranker=f"{__name__}:shortest")
    for line in (tmp_path / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert len(row["chosen"]) == -row["score_chosen"] < -row["score_rejected"]
    assert "source" in json.loads((tmp_path / "provenance.json").read_text())["ranker"]


def test_a_rule_that_scores_too_few_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one_too_few: prompt 'train/.*1 scores for .* answers"):
        sample_into(tmp_path, ranker=f"{__name__}:one_too_few")


def test_a_folder_of_something_else_is_left_alone(undisturbed: Path, tmp_path: Path) -> None:
    before = read_files(undisturbed)
    with pytest.raises(UserError, match="holds pairs of another model, other prompts or settings"):
        sample_into(undisturbed, margin=1.5)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt, which does not belong to the pairs"):
        sample_into(tmp_path)
    assert read_files(undisturbed) == before


def make_scores(*values: float | None) -> list[Score | None]:
    return [None if value is None else Score(value=value) for value in values]


def test_which_answers_make_a_pair() -> None:
    texts = ["a", "b", "c"]
    assert choose_pair(texts[:1], make_scores(1), 0) == ONE_ANSWER
    assert choose_pair(texts, make_scores(None, 1, None), 0) == UNRANKED
    assert choose_pair(texts, make_scores(2, 2, 2), 0) == TIE
    assert choose_pair(texts, make_scores(2, 2, 1), 1.5) == NARROW
    assert choose_pair(texts, make_scores(1, 2, 2), 1) == ("b", "a", Score(value=2), Score(value=1))
    richer = [*make_scores(0), Score(value=2, tie_break=1), Score(value=2, tie_break=3)]
    assert choose_pair(texts, richer, 0) == ("c", "a", richer[2], richer[0])


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises((UserError, TrialError), match="no folder"):
        sample_pairs(
            str(tmp_path / "absent"),
            DataConfig(source="shapes"),
            PairsConfig(),
            folder=tmp_path / "out",
            data_paths=DataPaths(),
        )
