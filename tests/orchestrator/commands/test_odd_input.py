"""200 odd values of options and of files: each one line, exit code 2, and nothing left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main

RUN = ["run", "encoder", "--executor", "inline"]
EVALUATE = ["evaluate", "shapes", "--benchmarks", "shapes", "--out", "o"]
EXPORT = [
    "judge-humans", "export", "encoder", "--arms", "a", "b", "--benchmark", "shapes", "--out", "o",
]  # fmt: skip
NEW = ["new", "--name", "n", "--question", "q", "--recipe", "shapes", "--primary", "shapes/chair_i"]

#: What lies where the commands are given: see `_input_folder`.
LONG = "x" * 300

#: Options and arguments: the command, with `¤` for the value; each value, and what is told.
OPTIONS: list[tuple[list[str], dict[str, str]]] = [
    ([*RUN, "--max-hours", "¤"], {
        "nan": "'nan' is not a finite number", "inf": "is not a finite number",
        "1e400": "is not a finite number", "-1": "-1 is too small: give one above 0",
        "0": "too small", "-0.0": "too small", "": "is not a finite number", " ": "not a finite",
        "٣": "not a finite number: write one, such as 1.5", "1e308": "1,000,000 at most",
        "true": "not a finite number", "1_000": "not a finite number", "0x10": "not a finite "
            "number",
        "1,5": "not a finite number",
    }),
    ([*RUN, "--max-gpu-hours", "¤"], {"nan": "not a finite number", "Infinity": "not a finite "
        "number",
                                      "5": "max_gpu_hours: no trial of this study uses a GPU"}),
    ([*RUN, "--max-failures", "¤"], {"0": "0 is too small: 1 or more", "1.0": "not a whole number",
                                     "1e3": "not a whole number", "１２": "not a whole number",
                                     "9" * 30: "not a whole number"}),
    ([*RUN, "--device-memory", "¤"], {"inf": "not a finite", "1e308": "1,048,576 at most",
                                      "nan": "not a finite", "0": "too small"}),
    ([*RUN, "--price-per-gpu-hour", "¤"], {"inf": "not a finite", "-1": "-1 is too small: 0 or "
        "more",
                                           "1e10": "1,000,000,000 at most"}),
    ([*RUN, "--price-per-cpu-hour", "¤"], {"nan": "not a finite", "two": "not a finite"}),
    ([*RUN, "--max-concurrent", "¤"], {"2": "cannot be used with --executor inline", "x": "not a "
        "whole"}),
    (["plan", "encoder", "--executor", "inline", "--max-concurrent", "¤"],
     {"1": "cannot be used with --executor inline"}),
    ([*RUN, "--address", "¤"], {"auto": "cannot be used with --executor inline", "": "is empty"}),
    (["run", "encoder", "--address", "¤"], {
        "here": "write auto, or HOST:PORT", "host:": "HOST:PORT", "host:0": "HOST:PORT",
        "host:70000": "HOST:PORT", ":6379": "HOST:PORT", "ray://h:1": "client protocol is not",
        "127.0.0.1:1": "no Ray cluster at the address 127.0.0.1:1",
    }),
    ([*RUN, "--rate", "¤"], {"step=inf": "not name=number", "step": "not name=number",
                             "step=-1": "--rate: step: input should be gr", "steps=1": "did you"
                             " mean 'step'?"}),
    ([*RUN, "--rate", "step=1", "--rate", "¤"], {"step=2": "--rate: step: is given twice"}),
    ([*RUN, "--budget", "¤"], {"hours=nan": "not name=number", "hours=1e400": "not name=number",
                               "days=3": "unknown key", "hours=0": "greater than 0"}),
    ([*RUN, "--budget", "hours=1", "--budget", "¤"],
     {"hours=2": "--budget: hours: is given twice"}),
    ([*RUN, "--rates", "¤"], {"none": "none: does not exist", "dir": "is a folder", "": "is empty",
                              "rates.yaml": "rates.yaml: step: input should be a valid number, not "
                              "'1.5': write 1.5 without quotes"}),
    ([*RUN, "--workdir", "¤"], {
        LONG: "File name too long", "/".join(["y" * 200] * 17): "is too long a path",
        "loop": "Too many levels of symbolic links", "loop/x": "symbolic links",
        "file": "is a file: name a folder", "file/x": "is below a file", "": "is empty",
        " ": "is empty", "s3://b/k": "and the address as --storage", "gs://b": "is an address",
        "file:///tmp/z": "is an address",
        "s3:/b/k": "is an address", "dangling": "a broken link",
        "a\nb": "a control character", "\x00": "a control character", "\udcff": "control character",
    }),
    (["status", "encoder", "--workdir", "¤"], {"loop": "symbolic links", "s3://b": "an address"}),
    (["cache", "--workdir", "¤"], {"file": "is a file", LONG: "too long"}),
    (["sync", "--workdir", "¤"], {"file/x": "below a file"}),
    (["ui", "--workdir", "¤"], {"loop": "symbolic links"}),
    (["ui", "--port", "¤"],
     {"0": "too small", "70000": "65535 at most", "http": "not a whole number"}),
    ([*RUN, "--judge-replies", "¤"], {"none": "--judge-replies: no file none", "": "is empty",
                                      "dir": "is a folder: name a file"}),
    ([*RUN, "--benchmark-data", "¤"], {"none": "--benchmark-data: no folder none",
                                       "file": "is a file: name a folder", "loop": "symbolic"}),
    ([*RUN, "--storage", "¤"], {"": "--storage is empty", "ftp://x/y": "not a supported kind",
                                "s3://": "does not name a folder", "s3:/b": "two slashes"}),
    ([*RUN, "--recipe", "¤"],
     {"": "is empty", "dir": "dir is a folder: name the recipe in it: 'a b.y"
                               "aml'", "shape": "did you mean 'shapes'?"}),
    ([*RUN, "--seeds", "¤"], {"": "is not a list of whole numbers", "0,1,": "not a list of whole "
        "numbers",
                              "0,,1": "not a list", "1.0": "not a list", "-1": "a seed is "
                                  "negative"}),
    ([*RUN, "--set", "¤"], {
        "training.max_steps=true": "max_steps: input should be a valid integer, not true",
        "training.max_steps='20'": "not '20': write 20 without quotes",
        "training.max_steps=1_000": "not '1_000': write 1000",
        "training.max_steps=1e3": "not 1000.0: write 1000",
        "optimizer.lr=false": "--set: optimizer.lr: input should be a valid number, not false",
        "optimizer.lr=1e400": "a finite number", "optimizer.betas=[0.9, '0.99']": "betas[1]: input",
        "engine.bucket=yes": "not 'yes': write true", "engine.bucket=0": "not 0: write false",
        "objective.custom={'a:b': true}": "objective.custom.a:b: input should be a valid number",
        "model=nowhere": "--set: model.path: no folder nowhere",
        "data.source=none.jsonl": "--set: data.source: no file none.jsonl",
        "data.split=train": "--set: data.source: split 'train': only a folder or a hub name",
        "training.label_rule=released": "--set: training.label_rule: released: a llava scores",
        "seed=1": "the study's seeds are set by `seeds:`", "x": "is not key=value", "=1": "not "
            "key=value",
        "optimizer.lr=[1": "--set optimizer.lr", "optimizer.lr=!!python/name:os.system": "--set",
    }),
    ([*RUN, "--set", "data.limit=1", "--set", "¤"],
     {"data.limit=2": "--set: data.limit: is given"}),
    (["plan", "¤"], {
        "dir": "dir: is a folder: name the study file in it: 'a b.yaml'",
        "empty": "there is no YAML file in it",
        "": "STUDY is empty", "none": "no such study file", "loop": "no such study file",
        "file": "file: does not hold a mapping", LONG: "no such study file", "encoder/": "did "
            "you mean",
    }),
    (["evaluate", "shapes", "--benchmarks", "shapes", "--out", "¤"], {
        "file": "is a file: name a folder", "file/x/y": "is below a file", "loop": "symbolic",
        "s3://b/x": "is an address, not a path", LONG: "File name too long", "": "--out is empty",
    }),
    (["evaluate", "shapes", "--out", "o", "--benchmarks", "¤"], {
        "shapes,": "'shapes,' has a comma without a name next to it", ",shapes": "without a name "
            "next to it",
        "shapes,,pope": "without a name next to it", ",": "names none", "": "is empty",
        "shapes, shapes": "named twice", "shape": "did you mean 'shapes'?",
    }),
    ([*EVALUATE, "--limit", "¤"], {"0": "too small", "x": "not a whole number"}),
    ([*EVALUATE, "--limit", "3", "--set", "¤"],
     {"limit=4": "--set limit and --limit set the same"}),
    ([*EVALUATE, "--set", "¤"], {
        "name=pope": "the benchmarks are set by --benchmarks", "limit='3'": "write 3 without",
        "judge.model=m": "'shapes' does not use a judge: leave out `judge`", "limit=true": "not "
            "true",
        "half=select": "select is for tuning", "num_beams=0": "greater than or equal to 1",
    }),
    ([*EVALUATE, "--batch", "¤"], {"-1": "too small", "1e1": "not a whole number"}),
    ([*EVALUATE, "--base", "¤"], {"x": "--base: shapes holds no adapter", " ": "is empty"}),
    ([*EVALUATE, "--judge-replies", "¤"], {"none": "no file none"}),
    ([*EVALUATE, "--benchmark-data", "¤"], {"none": "no folder none"}),
    (["plugin", "check", "own_term:term", "--set", "¤"], {"x=1": "only a strategy has parameters"}),
    (["plugin", "check", "own_term:term", "--benchmark-data", "¤"],
     {"dir": "no benchmark's files"}),
    (["plugin", "check", "¤"],
     {"": "is empty", "own_term": "does not name any code", "none:x": "install it"}),
    (["cache", "--prune", "--older-than", "¤"], {"nan": "not a finite", "-1": "0 or more"}),
    (["represent", "shapes", "--out", "o", "--layer", "¤"], {"1.5": "not a whole number"}),
    (["represent", "shapes", "--out", "o", "--seeds", "¤"], {"1": "--seeds is for studies"}),
    (["represent", "shapes", "--out", "o", "--workdir", "¤"], {"w": "--workdir is for studies"}),
    (["represent", "shapes", "--items", "5", "--out", "¤"], {"file": "is a file", "": "is empty"}),
    (["gallery", "--out", "¤"], {"x.gif": ".gif is not a figure format", "file/x.png": "is below "
        "a file",
                                 "s3://b/x.png": "is an address", "dir": "is a folder"}),
    (["gallery", "--timesteps", "¤"], {"1,": "not a list of whole numbers", "1000": "from 0 to "
        "999"}),
    (["gallery", "--seed", "¤"], {"-1": "too small", "1.5": "not a whole number"}),
    (["gallery", "--set", "strategy=blur", "--set", "¤"],
     {"crop.share=0.2": "only blur is drawn"}),
    (["gallery", "--set", "¤"],
     {"parameters.x=1": "name the strategy", "crop.share='1'": "valid nu"}),
    (["score", "pope", "--responses", "r.json", "--data", "dir", "--similarity", "¤"],
     {"none": "--similarity has no effect on pope"}),
    (["score", "pope", "--responses", "r.json", "--data", "dir", "--judge-replies", "¤"],
     {"r.json": "--judge-replies has no effect on pope"}),
    (["score", "pope", "--responses", "r.json", "--data", "dir", "--tagger", "¤"],
     {"spacy": "--tagger has no effect on pope"}),
    (["score", "shapes", "--responses", "r.json", "--data", "¤"], {"dir": "no effect on shapes"}),
    (["data", "check", "¤"], {"": "PATH is empty", "none.jsonl": "no file none.jsonl"}),
    (["data", "check", "file", "--limit", "¤"], {"0": "too small"}),
    (["data", "check", "file", "--image-root", "¤"], {"none": "no folder none", "": "is empty"}),
    (["data", "status", "--benchmark-data", "¤"], {"none": "no folder none", "": "is empty"}),
    ([*NEW, "--benchmark", "shapes", "--seeds", "1", "--factor", "¤"],
     {"objective=dpo,": "ends with a comma", "": "is empty", "objective": "is not a factor"}),
    ([*NEW, "--benchmark", "shapes", "--factor", "objective=dpo,chip", "--seeds", "¤"],
     {"0": "too small", "2000": "1000 at most"}),
    ([*NEW, "--benchmark", "shapes", "--seeds", "1",
      "--factor", "objective=dpo,chip", "--out", "¤"],
     {"file": "already exists", "file/x": "is below a file", "loop": "symbolic links"}),
    ([*EXPORT, "--items", "¤"], {"0": "too small", "many": "not a whole number"}),
    ([*EXPORT, "--overlap", "¤"], {"-1": "too small", "": "not a whole number"}),
    (["judge-humans", "import", "encoder", "¤"], {"none": "does not exist", "dir": "is a folder"}),
    (["cluster", "idle", "--then", "true", "--minutes", "¤"],
     {"nan": "not a finite", "0": "too small"}),
    (["cluster", "check", "¤"], {"": "FILE is empty", "dir": "is a folder"}),
    (["attach", "--cluster", "¤"], {"dir": "is a folder", "": "is empty"}),
    (["export", "x", "¤"], {"file": "is a file", "s3://b": "is an address", "": "is empty"}),
    (["show", "¤"], {"": "TRIAL is empty", "nobody": "no trial in chip-runs"}),
    (["rm", "--yes", "¤"], {"": "is empty", "nobody": "no trial in chip-runs"}),
    (["diff", "encoder", "¤"], {"dir": "is a folder", "": "STUDY_B is empty"}),
    (["schema", "¤"], {"all": "is not one of 'study', 'recipe'"}),
]  # fmt: skip

_STUDY = """
study: odd
recipe: shapes
factors: {{objective: [dpo, chip]}}
benchmarks: {{select: [shapes], report: [{{name: shapes, limit: 5}}]}}
{line}
"""
_TUNE = "tune: {{metric: select/shapes/chair_i, trials: 3, keys: {{optimizer.lr: {range}}}}}"

#: Lines of a study file, and the one line that is told of each.
FILES: dict[str, str] = {
    "seeds: true": "seeds: give a count or a list of whole numbers",
    "seeds: '3'": "seeds: give a count or a list of whole numbers",
    "seeds: [0, '1']": "seeds: give a count or a list of whole numbers",
    "seeds: 2.0": "seeds: give a count or a list of whole numbers",
    "exploratory: yes": "exploratory: input should be a valid boolean, not 'yes': write true",
    "exploratory: 1": "exploratory: input should be a valid boolean, not 1: write true",
    "limits: {max_hours: .nan}": "limits.max_hours: input should be a finite number",
    "limits: {max_hours: .inf}": "limits.max_hours: input should be a finite number",
    "limits: {max_hours: '3'}":
        "limits.max_hours: input should be a valid number, not '3': write 3",
    "limits: {max_failures: true}":
        "limits.max_failures: input should be a valid integer, not true",
    "limits: {max_failures: 2.0}": "limits.max_failures: input should be a valid integer, not 2.0: "
    "write 2",
    "limits: {}": "limits: sets no limit",
    "limits: 3": "limits: input should be a valid dictionary, not 3",
    "budget: {hours: true}": "budget.hours: input should be a valid number, not true",
    "budget: {price: '1e3'}": "budget.price: input should be a valid number, not '1e3': write 1e3",
    "primary: {metric: shapes/chair_i, smallest_difference: '1'}":
        "primary.smallest_difference: input should be a valid number, not '1': write 1",
    "primary: {metric: shapes/chair_i, smallest_difference: true}":
        "primary.smallest_difference: input should be a valid number, not true",
    "published: [{source: X, arm: base, values: {shapes/chair_i: true}}]":
        "published[0].values.shapes/chair_i: input should be a valid number, not true",
    "published: [{source: X, arm: base, values: {shapes/chair_i: '3'}}]":
        "published[0].values.shapes/chair_i: input should be a valid number, not '3': write 3",
    "published: [{source: X, arm: 3, values: {shapes/chair_i: 3}}]": "published[0].arm: ",
    "early_stopping: {method: asha, metric: loss, grace: '0.5'}":
        "early_stopping.grace: input should be a valid number, not '0.5': write 0.5",
    "early_stopping: {method: median, metric: reward/margin, min_trials: 1_0}":
        "early_stopping.min_trials: input should be a valid integer, not '1_0': write 10",
    _TUNE.format(range="{low: 2, high: 1}"): "tune.keys.optimizer.lr: low is not below high",
    _TUNE.format(range="{low: 0, high: 1, log: true}"):
        "tune.keys.optimizer.lr: a logarithmic range",
    _TUNE.format(range="{low: '1', high: 2}"):
        "tune.keys.optimizer.lr.low: input should be a valid",
    _TUNE.format(range="{lo: 1, low: 1, high: 2}"):
        "tune.keys.optimizer.lr.lo: unknown key: did you",
    _TUNE.format(range="{low: .inf, high: 2}"):
        "tune.keys.optimizer.lr.low: input should be a finite",
    _TUNE.format(range="5"):
        "tune.keys.optimizer.lr: input should be a valid dictionary or a valid "
    "list, not 5",
    _TUNE.format(range="['1e-5', 1e-5, 1e-4]"):
        "tune.keys.optimizer.lr[0]: input should be a valid number",
    "when: {objective: 3}": "when.objective: input should be a valid dictionary or a valid list",
    "Odd: 1": "Odd: unknown key: choices: baseline",
    "StudyFile: 1": "StudyFile: unknown key: choices: baseline",
    "design: true": "design: unknown level 'True'",
    "question: [1]": "question: input should be a valid string, not a list",
    "published: [{source: X, arm: base, values: {shapes/chair_i: .nan}}]":
        "published[0].values.shapes/chair_i: nan is not a number",
}  # fmt: skip
#: The same of the benchmarks' settings.
BENCHMARKS: dict[str, str] = {
    "limit: true": "limit: input should be a valid integer, not true",
    "limit: '5'": "limit: input should be a valid integer, not '5': write 5 without quotes",
    "limit: 1_000": "limit: input should be a valid integer, not '1_000': write 1000",
    "judge: gpt": ": 'shapes' does not use a judge: leave out `judge`",
    "judge: {model: m, temperature: '0'}": "judge.temperature: input should be a valid number, not",
    "judge: {model: m, retries: true}": "judge.retries: input should be a valid integer, not true",
    "half_seed: 1.0": "half_seed: input should be a valid integer, not 1.0: write 1",
}


def _iter_options() -> Iterator[tuple[list[str], str]]:
    for command, values in OPTIONS:
        for value, told in values.items():
            yield [value if word == "¤" else word for word in command], told


@pytest.fixture(autouse=True)
def _input_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out what the commands may meet, and let none of them begin its work."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "r.json").write_text("[]")
    (tmp_path / "rates.yaml").write_text("step: '1.5'\n")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a b.yaml").write_text("x")
    (tmp_path / "empty").mkdir()
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "dangling")
    (tmp_path / "own_term.py").write_text(
        "def term(chosen, rejected, rejected_image, beta):\n    return -beta * chosen.log_ratio()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_term", raising=False)
    monkeypatch.delenv("CHIP_ABLATE_BENCHMARK_DATA", raising=False)

    def begun(*_: Any, **__: Any) -> None:
        pytest.fail("it was not refused")

    monkeypatch.setattr("orchestrator.run.run_study", begun)
    monkeypatch.setattr("chip_core.models.loading.load", begun)


def _expect_refusal(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that is told; whatever else happens is a fault."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert sorted(folder.rglob("*")) == before
    (line,) = printed.err.splitlines()
    assert line.startswith("chip-ablate: ")
    return line


def test_at_least_200_odd_inputs_are_tried() -> None:
    assert len(list(_iter_options())) + len(FILES) + len(BENCHMARKS) >= 200


@pytest.mark.parametrize(
    ("arguments", "told"), [pytest.param(*one, id=f"{n}") for n, one in enumerate(_iter_options())]
)
def test_an_odd_option_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in _expect_refusal(arguments, tmp_path, capsys)


@pytest.mark.parametrize("line", FILES)
@pytest.mark.parametrize("command", [["plan"], ["run", "--executor", "inline"]])
def test_an_odd_value_in_a_file_is_one_line(
    command: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.yaml").write_text(_STUDY.format(line=line))
    assert f"odd.yaml: {FILES[line]}" in _expect_refusal([*command, "odd.yaml"], tmp_path, capsys)


@pytest.mark.parametrize("line", BENCHMARKS)
def test_an_odd_setting_of_a_benchmark_is_one_line(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = _STUDY.format(line="").replace("name: shapes, limit: 5", f"name: shapes, {line}")
    (tmp_path / "odd.yaml").write_text(study)
    assert BENCHMARKS[line] in _expect_refusal(["plan", "odd.yaml"], tmp_path, capsys)
