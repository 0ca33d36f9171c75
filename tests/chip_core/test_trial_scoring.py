"""The second step of a trial: answers that lie there become figures, without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.results import Progress, read_answered, read_result
from chip_core.trial import answer_trial, run_trial
from chip_core.trial_context import TrialContext
from chip_core.trial_scoring import score_trial
from chip_core.utils.errors import StoppedError, TrialError

SCORED = {
    "benchmarks": {
        "select": [{"name": "shapes", "limit": 6}],
        "report": [{"name": "shapes", "limit": 8}],
    }
}

SCORE = """
import json, sys
from pathlib import Path
from chip_core.config.trial import TrialConfig
from chip_core.trial_context import TrialContext
from chip_core.trial_scoring import score_trial
folder = Path(sys.argv[1])
config = TrialConfig.model_validate(json.loads((folder / "config.json").read_text()))
score_trial(config, TrialContext(folder=folder))
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def config() -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "model": "shapes",
            "data": {"limit": 10},
            "training": {"max_steps": 2, "batch_size": 4},
            "engine": {"threads": 1},
            **SCORED,
        }
    )


@pytest.fixture(scope="module")
def answered_folder(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose answers are not scored."""
    folder = tmp_path_factory.mktemp("answered")
    answer_trial(config, TrialContext(folder=folder))
    return folder


def test_both_steps_are_one_trial(
    config: TrialConfig, answered_folder: Path, tmp_path: Path
) -> None:
    whole = run_trial(config, folder=tmp_path)
    assert read_result(answered_folder) is None
    left = read_answered(answered_folder)
    assert left is not None
    assert {key: one.items for key, one in left.answers.items()} == {
        "select/shapes": 6,
        "report/shapes": 8,
    }
    ended = subprocess.run(
        [sys.executable, "-c", SCORE, str(answered_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "[]\n"  # neither is imported
    later = read_result(answered_folder)
    assert later is not None
    assert (later.metrics, later.steps, later.data) == (whole.metrics, whole.steps, whole.data)
    assert set(later.seconds) == set(whole.seconds)
    for side in ("select", "report"):
        name = f"scores/{side}-shapes.json"
        told = [
            json.loads((folder / name).read_text())["metrics"]
            for folder in (answered_folder, tmp_path)
        ]
        assert told[0] == told[1]


def test_an_earlier_attempts_answers_are_scored_in_another_folder(
    config: TrialConfig, answered_folder: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    result = score_trial(
        config, TrialContext(folder=tmp_path, report=told.append), answers=answered_folder
    )
    assert result.steps == 0  # the model is the earlier attempt's
    assert set(result.seconds) == {"read answers", "score select/shapes", "score report/shapes"}
    assert [(one.phase, one.done) for one in told] == [("score shapes", n) for n in (0, 1, 0, 1)]
    responses = "responses/report-shapes.jsonl"
    assert (tmp_path / responses).read_bytes() == (answered_folder / responses).read_bytes()
    assert set(result.files) >= {responses, "scores/report-shapes.json"}


def test_one_benchmark_of_them_can_be_scored(
    config: TrialConfig, answered_folder: Path, tmp_path: Path
) -> None:
    report = config.benchmarks.model_copy(update={"select": ()})
    only = config.model_copy(update={"benchmarks": report})
    assert list(
        score_trial(only, TrialContext(folder=tmp_path), answers=answered_folder).evaluations
    ) == ["report/shapes"]


def test_scoring_can_be_stopped(config: TrialConfig, answered_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="stopped in 'score shapes', 0/1"):
        score_trial(
            config, TrialContext(folder=tmp_path, stop=lambda: True), answers=answered_folder
        )
    assert read_result(tmp_path) is None


def test_answers_to_other_questions_are_refused(
    config: TrialConfig, answered_folder: Path, tmp_path: Path
) -> None:
    more = config.model_copy(
        update={
            "benchmarks": config.benchmarks.model_copy(
                update={"report": (config.benchmarks.report[0].model_copy(update={"limit": 9}),)}
            )
        }
    )
    with pytest.raises(TrialError, match="holds answers to other questions than the benchm"):
        score_trial(more, TrialContext(folder=tmp_path), answers=answered_folder)


def test_answers_that_were_changed_are_refused(config: TrialConfig, tmp_path: Path) -> None:
    answer_trial(config, TrialContext(folder=tmp_path, untrained=True))
    path = tmp_path / "responses" / "report-shapes.jsonl"
    path.write_text(path.read_text().replace("response", "respond", 1))
    assert read_answered(tmp_path) is None
    with pytest.raises(
        TrialError, match="its answers have changed since they were written: run the study"
    ):
        score_trial(config, TrialContext(folder=tmp_path))
