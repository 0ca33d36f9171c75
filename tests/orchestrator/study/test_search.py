"""Tuning on what is quoted is refused, whatever way it is tried: one line, exit code 2."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chip_core.config.benchmark import BenchmarksConfig
from chip_core.utils.errors import ConfigError
from orchestrator.study.load import load_study
from orchestrator.study.model import Study, StudyChanges
from orchestrator.study.search_space import SelectMetric

from ..program import run_program
from ..tuned_study import STUDY

#: A benchmark of a user's own that says its sides differ, and asks the same on both.
PLUGIN = """
from chip_core.evaluation.benchmarks.shapes.items import ShapesBenchmark

class Same(ShapesBenchmark):
    splits = True

    def items(self, side, *, data, protocol):
        return super().items("report", data=data, protocol=protocol)[:4]
"""
METRIC, SIDES = "metric: select/shapes/chair_i", "select: [shapes]\n  report: [shapes]"
CHOICES = (
    "choices: select/shapes/chair_i, select/shapes/chair_s, select/shapes/cover, select/shapes/hal"
)


def expect_refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that is said."""
    assert run_program(*arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # one way: a figure under `report` as what is tuned by
        (
            METRIC,
            "metric: shapes/chair_i",
            "tune.metric: 'shapes/chair_i' is under `report`, which cannot be used to choose: "
            f"name one under `select`: did you mean 'select/shapes/chair_i'? {CHOICES}",
        ),
        (
            METRIC,
            "metric: report/shapes/chair_i",
            f"tune.metric: unknown metric 'report/shapes/chair_i': did you mean 'select/shapes/"
            f"chair_i'? {CHOICES}",
        ),
        (
            "select: [shapes]",
            "select: []",
            "tune.metric: 'select/shapes/chair_i' cannot be used to choose: add a benchmark "
            "under `benchmarks.select` first",
        ),
        # another: the same questions on both sides
        (
            SIDES,
            "select: [shapes, pope]\n  report: [shapes, pope]",
            "benchmarks.report[1]: 'pope' is also under `select` and has only one set of "
            "questions, and questions used for tuning cannot be reported: name it on one side, "
            "or halve it: `half: select` there and `half: report` here",
        ),
        (
            SIDES,
            "select: [shapes, {name: pope, half: select}]\n"
            "  report: [shapes, {name: pope, half: select}]",
            "benchmarks: report: 'pope' uses the half for `select`: write `half: report`",
        ),
        (
            SIDES,
            "select: [shapes, {name: pope, half: select}]\n"
            "  report: [shapes, {name: pope, half: report, half_seed: 5}]",
            "benchmarks.report[1]: 'pope' is halved by two seeds, so that its halves overlap: give "
            "both one `half_seed`",
        ),
        # a third: by a key of the configuration
        (
            "optimizer.lr: [",
            "benchmarks.select: [[shapes], ",
            "tune.keys.benchmarks.select: is not a hyper-parameter: every trial is scored on "
            "the same benchmarks",
        ),
        (
            "seeds: [0, 1]\nbaseline: {objective: dpo}",
            "  benchmarks.select: [[shapes]]\nseeds: [0, 1]",
            "factors.benchmarks.select: 'benchmarks.select' cannot be a factor",
        ),
        # and a training that was chosen for its luck
        (
            METRIC,
            f"{METRIC}\n  seed: 1",
            "tune.seed: 1 is one of the study's seeds: a training that was chosen for its luck "
            "would be reported: use another",
        ),
    ],
)
def test_in_the_study_file(
    write_study: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    old: str,
    new: str,
    expected: str,
) -> None:
    path = write_study(STUDY.replace(old, new))
    assert expected in expect_refusal(capsys, command, str(path))
    assert list(tmp_path.iterdir()) == [path]  # nothing is written


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("benchmarks.select=[pope]", "--set: benchmarks.select: the benchmarks to tune on and "),
        (
            "benchmarks={select: [pope]}",
            "--set: benchmarks: the benchmarks to tune on and to report",
        ),
        ("tune.metric=shapes/chair_i", "--set: tune.metric: searches are set only by the"),
        (
            "optimizer.lr=1e-6",
            "tune.keys.optimizer.lr: is also set by --set: each arm chooses it, so leave out --set",
        ),
    ],
)
def test_from_the_command_line(
    write_study: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    override: str,
    expected: str,
) -> None:
    path = write_study(STUDY)
    assert expected in expect_refusal(capsys, "run", str(path), "--set", override)


def test_a_seed_of_the_search_from_the_command_line(
    write_study: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(STUDY)
    said = expect_refusal(capsys, "run", str(path), "--seeds", "0", "1000")
    assert "tune.seed: 1000 is one of the study's seeds" in said


def test_by_a_plug_in_that_says_its_sides_differ(
    write_study: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "same_on_both.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "same_on_both:Same"
    path = write_study(
        STUDY.replace(SIDES, f"select: ['{own}']\n  report: ['{own}']")
        .replace("metric: shapes/", f"metric: '{own}/")
        .replace("chair_i, goal", "chair_i', goal")
        .replace("metric: select/shapes/chair_i", f"metric: 'select/{own}/chair_i'")
    )
    said = expect_refusal(capsys, "run", str(path), "--executor", "inline", "--workdir", "w")
    assert f"{own}: its question test/0 is asked under `select`, too, by {own}" in said
    assert not (tmp_path / "w" / "trials").exists()
    under_another_name = STUDY.replace("select: [shapes]", f"select: ['{own}']").replace(
        "metric: select/shapes/chair_i", f"metric: 'select/{own}/chair_i'"
    )
    path = write_study(under_another_name)
    said = expect_refusal(capsys, "run", str(path), "--executor", "inline", "--workdir", "w")
    assert f"shapes: its question test/0 is asked under `select`, too, by {own}" in said


def test_by_the_interface_for_programs(load: Callable[..., Study]) -> None:
    study = load(STUDY)
    assert study.tune is not None
    quoted = BenchmarksConfig.model_validate({"report": ["shapes"]})
    other = SelectMetric(benchmark="pope", metric="f1", goal="maximize")
    for changes in (
        {"benchmarks": quoted},
        {"tune": replace(study.tune, metric=other)},
        {"seeds": (0, 1000)},
    ):
        with pytest.raises(ConfigError, match=r"^tune\.(metric|seed): ") as caught:
            replace(study, **changes)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "optimizer.lr: [1e-5, 5e-5, 1e-4]",
            "objective: [dpo, chip]",
            "tune.keys.objective: is varied by the factor 'objective': a key is either compared "
            "or tuned",
        ),
        ("optimizer.lr: [", "objective.preset: [chip, ", "is varied by the factor 'objective'"),
        ("optimizer.lr: [", "optimizer.lrr: [", "unknown key 'optimizer.lrr': did you mean"),
        (
            "optimizer.lr: [",
            "engine.threads: [",
            "is not a hyper-parameter: it does not change any figure",
        ),
        ("optimizer.lr: [", "seed: [", "is not a hyper-parameter: the study's own `seeds:`"),
        ("[1e-5, 5e-5, 1e-4]", "[fast]", "tune.keys.optimizer.lr[0]: input should be a valid "),
        ("[1e-5, 5e-5, 1e-4]", "[]", "tune.keys.optimizer.lr: has no values: give at least one"),
        ("[1e-5, 5e-5, 1e-4]", "[1, 1]", "tune.keys.optimizer.lr: 1 is listed twice: remove one"),
        ("[1e-5, 5e-5, 1e-4]", "{low: 1, high: 2}", "tune.trials: is missing: a range has endless"),
        ("[1e-5, 5e-5, 1e-4]", "{low: 2, high: 1}\n  trials: 2", "low is not below high"),
        ("[1e-5, 5e-5, 1e-4]", "{low: 0, high: 1, log: true}\n  trials: 2", "begins above 0"),
        ("[1e-5, 5e-5, 1e-4]", "{low: 0.0, high: 1}\n  trials: 2", "optimizer.lr[low]: input"),
        ("  goal: minimize\n", "  goal: minimize\n  trials: 4\n", "4 is more than the 3 combin"),
        ("  goal: minimize\n", "  goal: maximize\n", "tune.goal: 'select/shapes/chair_i' must be"),
        ("report: [shapes]", "report: []", "tune: nothing would be reported: add a benchmark"),
    ],
)
def test_what_else_is_wrong_with_a_search_is_told(
    write_study: Callable[[str], Path], old: str, new: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(write_study(STUDY.replace(old, new)), StudyChanges())
    assert any(expected in line for line in caught.value.problems), caught.value.problems
