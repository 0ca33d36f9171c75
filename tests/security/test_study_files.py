"""Malformed study files: a line a problem, exit code 2, nothing written."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip_core.recipes.text import MAX_VALUES, MAX_YAML_BYTES, parse_yaml
from chip_core.utils.errors import ConfigError, first_line, to_printable
from orchestrator.study.load import load_study

from . import refusals

KIND = "study files"
TREE: dict[str, Any] = {
    "study": "small",
    "question": "Which?",
    "recipe": "shapes",
    "factors": {"objective": ["dpo", "chip"], "vision_encoder": ["frozen", "trained"]},
    "seeds": [0, 1],
    "baseline": {"objective": "dpo", "vision_encoder": "frozen"},
    "benchmarks": {"report": ["shapes"]},
    "primary": {"metric": "shapes/chair_i", "goal": "minimize"},
}
BASE = "study: small\nrecipe: shapes\nfactors: {objective: [dpo, chip]}\n"
SCORED = f"{BASE}benchmarks: {{report: [shapes]}}\n"


def make_bomb(levels: int) -> str:
    """Make aliases of aliases: ten times as many values a line."""
    lines = ["cells: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"k{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


def make_judge_study(settings_text: str) -> str:
    return f"{BASE}benchmarks: {{report: [{{name: mmhal, judge: {{model: m, {settings_text}}}}}]}}"


def make_factor_study(text: str) -> str:
    return f"study: small\nrecipe: shapes\nfactors: {{{text}}}\n"


TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "null": "null",
    "a list": "[1]",
    "a scalar": "hi",
    "null bytes": b"\0\0\0",
    "random bytes": random.Random(0).randbytes(300),
    "UTF-16": BASE.encode("utf-16"),
    "latin-1": b"study: \xe9\n",
    "half a letter": b"study: \xe2\x82",
    "a surrogate's bytes": b"study: \xed\xa0\x80",
    "a tab": "study:\t\tx\n\tfoo: 1",
    "not closed": "study: [1, 2",
    "a stray alias": f"{BASE}seeds: *nobody",
    "an alias bomb": f"{BASE}{make_bomb(8)}",
    "a short alias bomb": f"{BASE}{make_bomb(5)}",
    "a merge bomb": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n",
    "a list in itself": "study: &s [*s]\n",
    "a mapping in itself": "study: s\nfactors: &f {objective: *f}\n",
    "a merge with itself": "factors: &f {<<: *f}\nstudy: s\n",
    "deep brackets": "[" * 5000 + "]" * 5000,
    "deep braces": "{a: " * 3000,
    "deep lines": "\n".join(" " * depth + "a:" for depth in range(200)),
    "deep and closed": f"{BASE}seeds: {'[' * 60}0{']' * 60}",
    "too long": f"{BASE}question: {'q' * MAX_YAML_BYTES}",
    "too many values": f"{BASE}seeds: [{', '.join(['0'] * MAX_VALUES)}]",
    "5,000 digits": f"{BASE}seeds: {'9' * 5000}",
    "4,000 digits": f"{BASE}seeds: {'9' * 4000}",
    "23 digits": f"{BASE}seeds: [{'9' * 23}]",
    "400 digits of a factor": make_factor_study(f"training.batch_size: [{'9' * 400}, 2]"),
    "a factor that is not a number": make_factor_study("optimizer.lr: [.nan, 1e-5]"),
    "an infinite factor": make_factor_study("optimizer.lr: [.inf, 1e-5]"),
    "a float too large": make_factor_study("optimizer.lr: [1e999, 1e-5]"),
    "!!int": f"{BASE}seeds: !!int abc",
    "!!float": f"{BASE}seeds: !!float abc",
    "!!bool": f"{BASE}exploratory: !!bool maybe",
    "!!null": f"{BASE}question: !!null x",
    "!!str of a list": f"{BASE}question: !!str [a]",
    "!!map of a list": f"{BASE}question: !!map [1]",
    "!!seq of text": f"{BASE}seeds: !!seq a",
    "!!timestamp": f"{BASE}question: !!timestamp nope",
    "!!binary": f"{BASE}question: !!binary aGk=",
    "!!set": f"{BASE}seeds: !!set {{1, 2}}",
    "!!omap": f"{BASE}seeds: !!omap [a]",
    "!!pairs": f"{BASE}seeds: !!pairs [a]",
    "!!merge": f"{BASE}question: !!merge x",
    "!!value": f"{BASE}=: x",
    "a call": f"{BASE}question: !!python/object/apply:os.system ['touch pwned']",
    "an object": f"{BASE}question: !!python/object/new:os.system ['touch pwned']",
    "a name": f"{BASE}question: !!python/name:os.system",
    "a module": f"{BASE}question: !!python/module:antigravity",
    "a tag of one's own": f"{BASE}question: !own x",
    "a version": f"%YAML 99.1\n---\n{BASE}",
    "two documents": f"{BASE}---\n{BASE}",
    "a key twice": f"{BASE}study: other",
    "a number for a key": f"{BASE}1: 2",
    "null for a key": f"{BASE}null: 2",
    "a list for a key": f"{BASE}? [a]\n: 2",
    "a mapping for a key": f"{BASE}? {{a: 1}}\n: 2",
    "no number for a key": f"{BASE}.nan: 2",
    "a factor's number for a key": make_factor_study("1: [a, b]"),
    "a level's number for a key": make_factor_study("x: {1: {2: 3}}"),
    "a cell's number for a key": f"{BASE}design: cells\ncells: [{{1: 2}}]",
    "factors are null": "study: s\nfactors: null\n",
    "factors are text": "study: s\nfactors: hi\n",
    "factors are empty": "study: s\nfactors: {}\n",
    "no levels": make_factor_study("objective: []"),
    "a level is a number": make_factor_study("objective: {a: 1}"),
    "a level of unknown keys": make_factor_study("objective: {a: {b: {c: 1}}}"),
    "levels in lists": make_factor_study("objective: [[[[dpo]]]]"),
    "a factor of dots": make_factor_study("...: [1, 2]"),
    "a factor without a name": make_factor_study("'': [1, 2]"),
    "a factor of Python's": make_factor_study("__class__: [1, 2]"),
    "a factor below a value": make_factor_study("optimizer.lr.real: [1, 2]"),
    "too many cells": make_factor_study(
        ", ".join(f"k{i}: {{a: {{seed: 1}}, b: {{optimizer.lr: 1e-5}}}}" for i in range(30))
    ),
    "a name that climbs": BASE.replace("small", "../../x"),
    "an absolute name": BASE.replace("small", "/etc/x"),
    "a name with a new line": BASE.replace("small", '"s\\n"'),
    "a name with a null byte": BASE.replace("small", '"s\\0"'),
    "a name that colours": BASE.replace("small", '"\\e[31mred"'),
    "a name from right to left": BASE.replace("small", '"a\\u202eb"'),
    "no name": BASE.replace("small", '""'),
    "a name of dots": BASE.replace("small", '".."'),
    "a number for a name": BASE.replace("small", "5"),
    "a variant's name": BASE.replace("small", "a+b"),
    "a recipe that is not YAML": BASE.replace("shapes", "../../../../../etc/passwd"),
    "a recipe that is a device": BASE.replace("shapes", "/dev/zero"),
    "a recipe that is a folder": BASE.replace("shapes", "/"),
    "a recipe of a null byte": BASE.replace("shapes", '"\\0"'),
    "a recipe no file can be": BASE.replace("shapes", "r" * 5000),
    "a recipe of a list": BASE.replace("shapes", "[a]"),
    "no recipe": BASE.replace("shapes", '""'),
    "a recipe from afar": BASE.replace("shapes", "https://example.org/r.yaml"),
    "a negative seed": f"{BASE}seeds: [-1]",
    "half a seed": f"{BASE}seeds: [1.5]",
    "a true seed": f"{BASE}seeds: [true]",
    "many seeds": f"{BASE}seeds: 1000000000",
    "many listed seeds": f"{BASE}seeds: [{', '.join(map(str, range(30_000)))}]",
    "a seed twice": f"{BASE}seeds: [1, 1]",
    "seeds of text": f"{BASE}seeds: abc",
    "seeds are null": f"{BASE}seeds: null",
    "seeds in lists": f"{BASE}seeds: [[1]]",
    "a baseline of lists": f"{BASE}baseline: {{objective: [1]}}",
    "a baseline of mappings": f"{BASE}baseline: {{objective: {{a: 1}}}}",
    "a factor on itself": f"{BASE}when: {{objective: {{objective: dpo}}}}",
    "when is text": f"{BASE}when: hi",
    "cells of mappings": f"{BASE}design: cells\ncells: [{{objective: {{a: 1}}}}]",
    "nothing included": f"{BASE}include: [{{a: [b]}}]",
    "all excluded": f"{BASE}exclude: [{{objective: dpo}}, {{objective: chip}}]",
    "a benchmark that climbs": f"{BASE}benchmarks: {{report: ['../../etc']}}",
    "a benchmark in lists": f"{BASE}benchmarks: {{report: [[shapes]]}}",
    "a benchmark of os": f"{BASE}benchmarks: {{report: ['os:system']}}",
    "a benchmark of colons": f"{BASE}benchmarks: {{report: ['::']}}",
    "no questions": f"{BASE}benchmarks: {{report: [{{name: shapes, limit: 0}}]}}",
    "a judge in a file": make_judge_study("base_url: 'file:///etc/passwd'"),
    "a judge at no address": make_judge_study("base_url: 'http://[::1'"),
    "a judge's password": make_judge_study("base_url: 'http://user:secret@host/v1'"),
    "a judge's key in a query": make_judge_study("base_url: 'http://host/v1?key=secret'"),
    "a judge's port": make_judge_study("base_url: 'http://host:99999999/v1'"),
    "a judge's address of two lines": make_judge_study('base_url: "http://host/v1\\nX: y"'),
    "a key's name": make_judge_study("api_key_env: 'A=B'"),
    "a key's null byte": make_judge_study('api_key_env: "A\\0"'),
    "a metric that climbs": f"{SCORED}primary: {{metric: ../x, goal: minimize}}",
    "a difference that is none": (
        f"{SCORED}primary: {{metric: shapes/chair_i, goal: minimize, smallest_difference: .nan}}"
    ),
    "a published NaN": (
        f"{SCORED}published: [{{source: x, arm: base, values: {{shapes/chair_i: .nan}}}}]"
    ),
    "a published infinity": (
        f"{SCORED}published: [{{source: x, arm: base, values: {{shapes/chair_i: .inf}}}}]"
    ),
    "a judge's setting of NaN": (
        f"{BASE}benchmarks: {{report: [{{name: mmhal, judge: {{model: m, send: {{x: .nan}}}}}}]}}"
    ),
    "a budget of NaN": f"{BASE}budget: {{gpu_hours: .nan}}",
    "a budget below 0": f"{BASE}budget: {{gpu_hours: -1}}",
    "a search of nothing": f"{BASE}tune: []",
    "a question in lists": f"{BASE}question: [a]",
    "a question that rings": f'{BASE}question: "\\a"',
    "a question of half a pair": f'{BASE}question: "\\ud800"',
    "data that are no data": make_factor_study("data.source: ['/etc/passwd', shapes]"),
    "data of a null byte": make_factor_study('data.source: ["\\0", shapes]'),
    "data no file can be": make_factor_study(f"data.source: [{'d' * 5000}, shapes]"),
    "data from afar": make_factor_study("data.source: ['https://example.org/a.parquet', shapes]"),
    "a model that is none": make_factor_study("model: ['/etc', shapes]"),
    "a model no file can be": make_factor_study(f"model: [{'m' * 6000}, shapes]"),
    "a model's code of a branch": make_factor_study(
        "model: {a: {model.path: o/n, model.trust_remote_code: true, model.revision: main}}"
    ),
    "a strategy of os": make_factor_study("rejected_image: ['os:system', crop]"),
    "a strategy beside nothing": make_factor_study("rejected_image: ['.x:y', crop]"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_by_hand(tmp_path: Path, name: str) -> None:
    text = TEXTS[name]
    file = tmp_path / "study.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    lines = refusals.expect_program_refusal(
        KIND, tmp_path, "plan", str(file), "--workdir", str(tmp_path / "runs")
    )
    assert any(str(file) in line or "--" in line for line in lines)
    assert not Path("pwned").exists()


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("s" * 5000, "\0", "../" * 2000):
        refusals.expect_program_refusal(
            KIND, tmp_path, "plan", name, "--workdir", str(tmp_path / "runs")
        )


hostile = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from(["../../x", "/etc/passwd", "\0", "os:system", "~", "*", "<script>", "=1+1"]),
)


@st.composite
def draw_damaged_files(draw: st.DrawFn) -> bytes:
    """Draw a good study file with a value of it replaced, or some of its bytes."""
    if draw(st.booleans()):
        tree = copy.deepcopy(TREE)
        node: Any = tree
        while True:
            key = draw(
                st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
            )
            below = node[key]
            if isinstance(below, (dict, list)) and below and draw(st.booleans()):
                node = below
                continue
            node[key] = draw(hostile)
            break
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    whole = bytearray(yaml.safe_dump(TREE).encode())
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(whole) - 1))
        whole[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(whole)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=draw_damaged_files())
def test_by_hypothesis(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(content)
    try:
        load_study(file)
    except ConfigError as error:
        assert error.problems
        refusals.count_refusal(f"{KIND}, generated", to_printable(first_line(error)))
    assert sorted(os.listdir(tmp_path)) == ["study.yaml"]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(text=st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t\\0191.e+", max_size=40))
def test_no_text_at_all_does_anything_else(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except ConfigError as error:
        refusals.count_refusal(f"{KIND}, generated", to_printable(error.problems[0]))
