"""new: a study file from flags, from answers, or from both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chip_core import recipes
from orchestrator.study.load import load_study

from ..program import run_program

FLAGS = [
    "--name", "beta", "--question", "How sharp: 0.1, or more?", "--recipe", "shapes",
    "--factor", "objective.beta=0.1,0.3,1e-2", "--factor", "objective=dpo, chip",
    "--seeds", "2", "--benchmark", "shapes", "--primary", "shapes/hal",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_answers(monkeypatch: pytest.MonkeyPatch, *lines: str) -> Iterator[str]:
    """Answer the questions in turn; nobody answers after that."""
    left = iter(lines)

    def typed(prompt: str = "") -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    return left


def test_flags_answer_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_answers(monkeypatch)
    assert run_program("new", *FLAGS) == 0
    assert capsys.readouterr().out.startswith("wrote beta.yaml")
    study = load_study(folder / "beta.yaml")
    assert (study.name, study.question) == ("beta", "How sharp: 0.1, or more?")
    assert [[level.name for level in factor.levels] for factor in study.factors] == [
        ["0.1", "0.3", "0.01"], ["dpo", "chip"],
    ]  # fmt: skip
    assert study.seeds == (0, 1)
    assert study.baseline == {"objective.beta": "0.1", "objective": "dpo"}
    assert study.primary is not None and study.primary.metric == "shapes/hal"
    text = (folder / "beta.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=")
    assert set(recipes.read_yaml(folder / "beta.yaml")) >= {"study", "factors", "baseline"}


def test_questions_are_asked_until_the_answer_will_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = type_answers(
        monkeypatch,
        "asked", "Which?", "",  # the recipe's default
        "objectiv=dpo,chip", "objective=dpo,chip", "y", "vision_encoder=frozen,trained", "n",
        "none", "2", "shaps", "shapes", "",  # the first metric
    )  # fmt: skip
    assert run_program("new") == 0
    assert next(left, None) is None
    told = " ".join(capsys.readouterr().err.split())
    assert "unknown key 'objectiv': did you mean 'objective'?" in told
    assert "'none' is not a count of seeds" in told
    assert "unknown benchmark 'shaps'" in told
    study = load_study(folder / "asked.yaml")
    assert len(study.cells) == 4
    assert study.primary is not None and study.primary.metric == "shapes/chair_i"
    assert study.recipe == "shapes"


def test_a_file_is_never_written_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_answers(monkeypatch)
    (folder / "beta.yaml").write_text("mine")
    assert run_program("new", *FLAGS) == 2
    assert "beta.yaml: already exists" in capsys.readouterr().err
    assert (folder / "beta.yaml").read_text() == "mine"
    assert run_program("new", *FLAGS, "--out", folder / "other.yaml") == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name", "x"], "--question is not given, and nobody can be asked"),
        ([*FLAGS, "--factor", "objective"], "'objective' is not a factor: write a key"),
        (
            [*FLAGS, "--factor", "seed=1,2"],
            "'seed' cannot be a factor: the study has its own `seed`",
        ),
        ([*FLAGS, "--factor", "objective=cmdpo"], "--factor: objective is named twice"),
        ([*FLAGS, "--factor", "training.epochs=a"], "factors.training.epochs[0]: input should be"),
        ([*FLAGS, "--recipe", "shape"], "recipe: unknown recipe 'shape': did you mean 'shapes'?"),
        ([*FLAGS, "--primary", "shapes/x"], "primary.metric: unknown metric 'shapes/x'"),
        ([*FLAGS, "--benchmark", "amberr"], "unknown benchmark 'amberr': did you mean 'amber'?"),
        ([*FLAGS, "--name", "a b"], "study: 'a b' is not a valid name"),
        ([*FLAGS, "--out", "nowhere/a.yaml"], "nowhere/a.yaml: cannot be written"),
    ],
)
def test_what_is_no_study_leaves_no_file(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    type_answers(monkeypatch)
    assert run_program("new", *arguments) == 2
    assert expected in capsys.readouterr().err
    assert list(folder.iterdir()) == []
