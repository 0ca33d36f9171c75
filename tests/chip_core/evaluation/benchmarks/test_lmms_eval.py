"""lmms-eval as another program: what it is asked, what is made of what it leaves, how it fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks import lmms_eval
from chip_core.evaluation.scorer import ScoreResult
from chip_core.utils.errors import TrialError, UserError

#: Stands in for a Python that has lmms-eval: answers for its version, else leaves results as it
#: does. What it did is told by $FAKE: "", "crash" (ends with 0, as the real one), "dies", "empty".
FAKE = """#!{python}
import json, os, pathlib, sys
arguments = sys.argv[1:]
if arguments[0] == "-c":
    if os.environ.get("FAKE") == "absent":
        sys.exit("ModuleNotFoundError: No module named 'lmms_eval'")
    print("0.9.9")
    sys.exit(0)
out = pathlib.Path(arguments[arguments.index("--output_path") + 1])
(out / "arguments.json").write_text(json.dumps(arguments))
print("key in the log:", os.environ["OPENAI_API_KEY"])
how = os.environ.get("FAKE", "")
if how == "crash":
    print("Traceback ...\\nRuntimeError: out of memory\\nbye")
    sys.exit(0)
if how == "dies":
    sys.exit("ValueError: no such task")
folder = out / "some__model"
folder.mkdir()
results = {{
    "mmbench_en_dev": {{"gpt_eval_score,none": 61.5, "gpt_eval_score_stderr,none": []}},
    "mmvet": {{"gpt_eval_score,none": 40.0}},
}}
if how == "empty":
    results = {{"mmvet": {{"gpt_eval_score,none": "none"}}}}
samples = {{"mmbench_en_dev": {{"effective": 4329}}, "mmvet": {{"effective": 3}}}}
text = json.dumps({{"results": results, "n-samples": samples}})
(folder / "20260101_results.json").write_text(text)
rows = [
    {{"doc_id": n, "gpt_eval_score": {{"question_id": f"v1_{{n}}", "score": score,
      "capabilities": "ocr,math", "eval_model": model}}}}
    for n, (score, model) in enumerate([(1.0, "judge-1"), (0.2, "judge-1"), (0.0, "")])
]
(folder / "20260101_samples_mmvet.jsonl").write_text("\\n".join(map(json.dumps, rows)))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = tmp_path / "python"
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(0o755)
    monkeypatch.setenv(lmms_eval.PYTHON_VARIABLE, str(fake))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava_next"}')
    return folder


def ask(model: Path, out: Path, name: str = "mmvet") -> tuple[ScoreResult, Mapping[str, Any]]:
    return BENCHMARKS[name].ask(model, folder=out, batch_size=4, device="cpu")


def test_figures_items_version_and_judge(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench, metadata = ask(model, out, "mmbench")
    assert metadata == {"program": "lmms_eval 0.9.9"}
    vet, metadata = ask(model, out)
    assert json.loads((out / "arguments.json").read_text()) == [
        *("-m", "lmms_eval", "--model", "llava_hf", "--model_args", f"pretrained={model}"),
        *("--tasks", "mmvet", "--batch_size", "4", "--output_path", str(out)),
        *("--log_samples", "--device", "cpu"),
    ]
    assert metadata == {"program": "lmms_eval 0.9.9", "judge": {"model": "judge-1"}}
    assert (bench.values, bench.n, bench.missing) == ({"accuracy": 61.5}, 4329, 0)
    assert bench.metrics[0].items == ()
    assert (vet.values, vet.n, vet.missing) == ({"score": 40.0}, 3, 1)
    items = [(i.item, i.numerator, i.denominator, i.group) for i in vet.metrics[0].items]
    assert items[1] == ("v1_1", 0.2, 1.0, "ocr,math")
    # The figure is 100 times the mean of the items: (1.0 + 0.2 + 0.0) / 3.
    assert vet.values["score"] == pytest.approx(100 * sum(i[1] for i in items) / len(items))
    assert "sk-secret" not in (out / lmms_eval.LOG).read_text()


def test_what_is_left_of_an_earlier_run_is_not_taken(model: Path, tmp_path: Path) -> None:
    stale = tmp_path / "out" / "old" / "29990101_results.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    scored, _ = ask(model, tmp_path / "out")
    assert scored.values == {"score": 40.0}
    assert not stale.exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("crash", "lmms-eval failed: RuntimeError: out of memory"),
        ("dies", "lmms-eval failed: ValueError: no such task"),
        ("empty", "lmms-eval gave no figure gpt_eval_score of mmvet"),
    ],
)
def test_a_failure_of_lmms_eval_is_reported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.setenv("FAKE", how)
    with pytest.raises(TrialError, match=said):
        ask(model, tmp_path / "out")


def test_what_is_missing_is_said_with_what_gets_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BENCHMARKS["mmbench"].problems() == []
    monkeypatch.delenv("OPENAI_API_KEY")
    (said,) = BENCHMARKS["mmbench"].problems()
    assert "no OPENAI_API_KEY or AZURE_API_KEY" in said
    monkeypatch.setenv("FAKE", "absent")
    said, _ = BENCHMARKS["mmvet"].problems()
    assert "pip install 'chip-ablate[lmms]'" in said and "\n" not in said
    monkeypatch.setenv(lmms_eval.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match="lmms-eval is not installed for"):
        ask(model, tmp_path / "out")


def test_models_that_it_cannot_load(model: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text('{"model_type": "shapes"}')
    with pytest.raises(UserError, match="no known adapter for 'shapes'"):
        ask(model, tmp_path / "out")
    (model / "config.json").rename(model / "adapter_config.json")
    with pytest.raises(UserError, match="holds adapters: .*chip-ablate export"):
        ask(model, tmp_path / "out")
    comma = tmp_path / "a,b"
    comma.mkdir()
    (comma / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match="does not accept a path with a comma"):
        ask(comma, tmp_path / "out")
