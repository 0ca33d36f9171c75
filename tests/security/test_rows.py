"""Malformed rows: each is a reason of one line, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from rich.console import Console

from chip_core.config.trial import DataConfig
from chip_core.data.checks import check_rows
from chip_core.data.preferences import load_pairs
from chip_core.data.rows import BadRow
from chip_core.data.source import open_source
from chip_core.utils.errors import ConfigError, TrialError
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import make_plan
from orchestrator.report.results import RunOutcome
from orchestrator.run import run_study
from orchestrator.state.ledger import Ledger
from orchestrator.study.load import load_study

from ..chip_core.data import files
from ..orchestrator.fakes import FakeTracker
from . import refusals

KIND = "rows"


def make_image_columns(data: bytes | None = None, path: str | None = None) -> dict[str, Any]:
    return {"image": {"bytes": data, "path": path}, "image_path": None}


IN_PARQUET: dict[str, dict[str, Any]] = {
    "no image": make_image_columns(),
    "no bytes": make_image_columns(b""),
    "no picture": make_image_columns(b"what?"),
    "a bomb": make_image_columns(files.make_huge_png()),
    "an absolute path": make_image_columns(path="/etc/hostname"),
    "a path that climbs": make_image_columns(path="../secret.jpg"),
    "a path that climbs from within": make_image_columns(path="images/../../secret.jpg"),
    "a path of a null byte": make_image_columns(path="a\0.jpg"),
    "a path no file can have": make_image_columns(path="x" * 10_000),
    "a path from afar": make_image_columns(path="https://example.org/a.jpg"),
    "a file's address": make_image_columns(path="file:///etc/hostname"),
    "a device": make_image_columns(path="/dev/zero"),
    "text that is not JSON": {"text": "{"},
    "text too deep": {"text": "[" * 100_000},
    "text too deep and closed": {"text": '{"question": ' * 5000 + "1" + "}" * 5000},
    "text of a list": {"text": "[1]"},
    "text of a number": {"text": "1e999"},
    "text of 5,000 digits": {"text": "9" * 5000},
    "text of NaN": {"text": "NaN"},
    "no text": {"text": None},
    "texts of other kinds": {"text": json.dumps({"question": 1, "chosen": [], "rejected": {}})},
    "empty texts": {"question": "", "chosen": " ", "rejected": "\n"},
    "equal responses": {"chosen": "A dog.", "rejected": " A dog."},
    "a null byte": {"chosen": "A\0dog."},
    "half a pair": {"rejected": "A \ud800."},
    "many images": {"question": "<image>" * 1000},
}
IN_LINES: dict[str, Any] = {
    "not UTF-8": b'{"image": "\xff"}',
    "cut short": b'{"image": "images/0.jpg", "prompt": "W',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 20_000,
    "a list": b"[1]",
    "5,000 digits": b'{"id": ' + b"9" * 5000 + b"}",
    "a null byte": b"\0",
    "an id of half a pair": {"id": "\ud800"},
    "an id of lists": {"id": [1]},
    "an image of numbers": {"image": 5},
    "two images": {"image": ["images/0.jpg", "images/1.jpg"]},
    "a folder": {"image": "images"},
    "a climb": {"image": "../secret.jpg"},
    "a link": {"image": "images/link.jpg"},
    "a link to a folder": {"image": "images/out/secret.jpg"},
    "a loop": {"image": "images/loop.jpg"},
    "a rejected image that climbs": {"rejected_image": "../secret.jpg"},
    "a reason that steers": {"image": "\x1b[31m\nred.jpg"},
}


@pytest.mark.parametrize("name", IN_PARQUET)
def test_of_parquet_by_hand(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(files.make_image_bytes())
    rows = [
        files.make_rlhf_v_row(0),
        files.make_rlhf_v_row(1, **IN_PARQUET[name]),
        files.make_rlhf_v_row(2),
    ]
    path = files.write_parquet(tmp_path / "d" / "a.parquet", rows)
    _expect_bad_row(path)


@pytest.mark.parametrize("name", IN_LINES)
def test_of_json_lines_by_hand(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "d"
    files.write_images(folder, 3)
    (tmp_path / "secret.jpg").write_bytes(files.make_image_bytes())
    (folder / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "images" / "out").symlink_to(tmp_path)
    (folder / "images" / "loop.jpg").symlink_to("loop.jpg")
    given_row = IN_LINES[name]
    row = given_row if isinstance(given_row, bytes) else files.make_path_row(1, **given_row)
    _expect_bad_row(
        files.write_lines(folder / "a.jsonl", [files.make_path_row(0), row, files.make_path_row(2)])
    )


def _expect_bad_row(path: Path) -> None:
    """Expect that the one bad row is named, and left out where that is asked for."""
    data = DataConfig(source=str(path))
    (bad,) = [row for row in check_rows(open_source(data)) if isinstance(row, BadRow)]
    assert str(bad).startswith(str(path))
    said = refusals.expect_refusal(KIND, lambda: load_pairs(data), TrialError)
    assert "1 of 3 rows are bad" in said
    left = load_pairs(DataConfig(source=str(path), on_bad_row="skip"))
    assert (len(left), len(left.skipped)) == (2, 1)


BROKEN_FILES: dict[str, tuple[str, bytes]] = {
    "an empty parquet": ("a.parquet", b""),
    "a parquet of text": ("a.parquet", b"hello"),
    "a parquet of marks alone": ("a.parquet", b"PAR1" + b"\xff" * 8 + b"PAR1"),
    "a pickle for parquet": ("a.parquet", b"cos\nsystem\n(S'touch pwned'\ntR."),
    "an empty JSON lines": ("a.jsonl", b""),
    "blank lines": ("a.jsonl", b"\n\n \n"),
    "columns of no format": ("a.jsonl", b'{"a": 1}\n'),
    "another kind": ("a.csv", b"image,prompt\n"),
    "a pickle": ("a.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."),
    "a script": ("a.py", b"open('pwned', 'w')"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_file_that_is_no_data_set(tmp_path: Path, name: str) -> None:
    file, content = BROKEN_FILES[name]
    (tmp_path / file).write_bytes(content)
    (tmp_path / "study.yaml").write_text(
        "study: small\nrecipe: own.yaml\nfactors: {vision_encoder: [frozen, trained]}\n"
    )
    (tmp_path / "own.yaml").write_text(f"model: shapes\ndata: {{source: {tmp_path / file}}}\n")
    refusals.expect_program_refusal(
        KIND, tmp_path, "plan", str(tmp_path / "study.yaml"), "--workdir", str(tmp_path / "runs")
    )
    assert not Path("pwned").exists()


cell = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.sampled_from(["../x", "/etc/passwd", "<image>", "images/0.jpg", "A.", " ", "\0", "\ud800"]),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(st.fixed_dictionaries({
    "image": st.one_of(cell, st.integers(), st.lists(cell, max_size=2)),
    "prompt": cell, "chosen": cell, "rejected": cell,
    "id": st.one_of(cell, st.floats(), st.integers()),
}), min_size=1, max_size=5))  # fmt: skip
def test_by_hypothesis(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Of any rows, each is either read or told."""
    files.write_images(tmp_path, 1)
    path = files.write_lines(tmp_path / "a.jsonl", [files.make_path_row(0), *rows])
    data = DataConfig(source=str(path), format="jsonl", on_bad_row="skip")
    pairs = load_pairs(data)
    assert len(pairs) + len(pairs.skipped) == len(rows) + 1
    for bad in pairs.skipped:
        refusals.count_refusal(f"{KIND}, generated", bad.reason)
    for pair in pairs:
        assert pair.image.mode == "RGB"


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
                       min_size=1, max_size=8), keep=st.floats(0.2, 1))  # fmt: skip
def test_damaged_parquet(tmp_path: Path, places: list[tuple[float, int]], keep: float) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.Table.from_pylist([files.make_rlhf_v_row(index) for index in range(3)]), path
    )
    whole = bytearray(path.read_bytes())
    for share, value in places:
        whole[int(share * len(whole))] = value
    path.write_bytes(bytes(whole[: int(keep * len(whole))]) if keep < 0.9 else bytes(whole))
    try:
        pairs = load_pairs(DataConfig(source=str(path), on_bad_row="skip"))
    except TrialError as error:
        refusals.count_refusal(f"{KIND}, generated", str(error))
        return
    for bad in pairs.skipped:
        refusals.count_refusal(f"{KIND}, generated", bad.reason)


def run_on_a_bomb(folder: Path, tracker: FakeTracker) -> RunOutcome:
    rows = [files.make_rlhf_v_row(0), files.make_rlhf_v_row(1, **IN_PARQUET["a bomb"])]
    path = files.write_parquet(folder / "a.parquet", rows)
    (folder / "own.yaml").write_text(
        f"model: shapes\ndata: {{source: {path}}}\nobjective: dpo\ntraining: {{max_steps: 1}}\n"
    )
    (folder / "study.yaml").write_text(
        "study: small\nrecipe: own.yaml\nfactors: {vision_encoder: [frozen]}\n"
    )
    return run_study(
        make_plan(load_study(folder / "study.yaml")),
        workdir=folder / "runs",
        executor=InlineExecutor,
        tracker=tracker,
        console=Console(quiet=True),
    )


def test_a_study_on_bad_rows_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        run_on_a_bomb(tmp_path, FakeTracker())
    (reason,) = refused.value.problems
    assert "1 of 2 rows are bad" in reason and "more than 89478485 pixels" in reason
    refusals.count_refusal("studies not begun", reason)
    assert not list(Ledger(tmp_path / "runs").items())
    assert not (tmp_path / "runs" / "trials").exists()
    assert not (tmp_path / "runs" / "studies").exists()


def test_a_trial_whose_rows_turned_bad_fails_with_the_reason_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: the trial FAILED, the ledger has its reason, no model is there."""
    monkeypatch.setattr("orchestrator.run.check_training_rows", lambda *of: None)  # good by then
    tracker, runs = FakeTracker(), tmp_path / "runs"
    outcome = run_on_a_bomb(tmp_path, tracker)
    (reason,) = outcome.failed.values()
    assert "1 of 2 rows are bad" in reason and "more than 89478485 pixels" in reason
    refusals.count_refusal("trials FAILED", reason)
    (view,) = [view for view in tracker.ended if view.status == "FAILED"]
    assert view.reason == reason
    (record,) = [record for _, record in Ledger(runs).items() if record.failure]
    assert record.failure == reason
    assert not list(runs.rglob("*.safetensors"))
    assert not list(runs.rglob("*.partial"))
