"""plugin check, on the examples of docs/plugins.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.plan.plan import Plan
from orchestrator.report.writers.plan import plan_lines, plan_to_json
from orchestrator.tracking.names import encode_name

from ..conftest import STUDY
from ..program import run_program

DOCS = Path(__file__).parents[3] / "docs" / "plugins.md"


@pytest.fixture
def plugin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    source, reading, benchmark = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.S)
    (tmp_path / "my_benchmarks.py").write_text(benchmark)
    file = tmp_path / "my_terms.py"
    file.write_text(
        f"{source}\n\n{reading}\n\n"
        "def wrong(chosen, rejected, rejected_image, beta):\n    return 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("my_terms", None)
    sys.modules.pop("my_benchmarks", None)


@pytest.mark.parametrize("name", ["margin_floor", "grounded", "unseen"])
def test_the_docs_examples_pass(
    plugin_file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("plugin", "check", f"my_terms:{name}") == 0
    assert "a loss term: 6 of 6 checks passed" in capsys.readouterr().out


def test_a_wrong_term_fails_its_check(
    plugin_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("plugin", "check", "my_terms:wrong", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["checks"]["one loss a pair"] == "it returned int, not one loss per pair, (3,)"


@pytest.mark.parametrize(
    ("name", "said"),
    [("my_terms", "write module:attr"), ("my_terms:no", "has no 'no'"), ("no:no", "imported")],
)
def test_a_missing_term_is_reported(
    plugin_file: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("plugin", "check", name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_docs_benchmark_passes_and_scores(
    plugin_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("plugin", "check", "my_benchmarks:Colours") == 0
    assert "a benchmark: 10 of 10 checks passed" in capsys.readouterr().out
    assert run_program("evaluate", "shapes", "--benchmarks", "my_benchmarks:Colours", "--json") == 0
    found = json.loads(capsys.readouterr().out)["benchmarks"]["my_benchmarks:Colours"]
    assert (found["n"], found["scorer"]) == (3, "colours-1")
    assert found["scores"] == "chip-evaluation/scores/report-my_benchmarks.Colours.json"


def test_a_study_may_ask_it(plugin_file: Path, plan_of: Callable[..., Plan]) -> None:
    text = STUDY.replace("[shapes]", "[shapes, {name: my_benchmarks:Colours, limit: 2}]")
    plan = plan_of(text)
    identity = plan.benchmarks["report/my_benchmarks:Colours"]
    assert identity["scorer"] == "colours-1"
    plugin_file.with_name("my_benchmarks.py").write_text(
        plugin_file.with_name("my_benchmarks.py").read_text() + "\n"
    )
    changed = plan_of(text).benchmarks["report/my_benchmarks:Colours"]
    assert changed["source"] != identity["source"]  # changed code makes new figures


def test_a_study_may_vary_it(plugin_file: Path, plan_of: Callable[..., Plan]) -> None:
    text = STUDY.replace(
        "vision_encoder: [frozen, trained]",
        "objective.custom: [{}, {my_terms:grounded: 0.5}]",
    ).replace(", vision_encoder: frozen}", ", objective.custom: '{}'}")
    plan = plan_of(text)
    assert len(plan.arms) == 4
    assert plan.arms[0].baseline


def test_names_that_mlflow_does_not_take_are_told(
    plugin_file: Path,
    plan_of: Callable[..., Plan],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = plugin_file.with_name("my_benchmarks.py")
    file.write_text(file.read_text().replace('"right"', '"right@1 (strict), %"'))
    name = "my_benchmarks:Colours/right@1 (strict), %"
    assert run_program("plugin", "check", "my_benchmarks:Colours") == 0
    told = capsys.readouterr().out
    assert f"in MLflow '{name}' is called '{encode_name(name)}'" in told
    assert "10 of 10 checks passed" in told
    assert run_program("plugin", "check", "my_benchmarks:Colours", "--json") == 0
    assert json.loads(capsys.readouterr().out)["mlflow_names"] == {name: encode_name(name)}

    plan = plan_of(STUDY.replace("[shapes]", "[shapes, {name: my_benchmarks:Colours}]"))
    lines = [str(line) for line in plan_lines(plan, tmp_path)]
    assert (
        f"in MLflow '{name}' is called '{encode_name(name)}', because MLflow does not accept that "
        "name" in lines
    )
    assert plan_to_json(plan, tmp_path)["mlflow_names"] == {name: encode_name(name)}


def test_names_that_mlflow_takes_are_not_mentioned(
    plugin_file: Path, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of(STUDY.replace("[shapes]", "[shapes, {name: my_benchmarks:Colours}]"))
    assert not [line for line in plan_lines(plan, tmp_path) if "MLflow" in str(line)]
    assert plan_to_json(plan, tmp_path)["mlflow_names"] == {}
