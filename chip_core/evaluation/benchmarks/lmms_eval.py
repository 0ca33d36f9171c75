"""MMBench, MMBench-CN and MM-Vet, by lmms-eval: an external program in its own process.

It generates and scores the answers itself: it gets a model's folder and returns figures. Its
version is recorded with them; figures of another version are not comparable. It is installed in
this environment (`pip install 'chip-ablate[lmms]'`) or in one of its own, whose Python
`CHIP_ABLATE_LMMS_PYTHON` names.

| benchmark    | task of lmms-eval | metric     | unit    |
|--------------|-------------------|------------|---------|
| `mmbench`    | mmbench_en_dev    | `accuracy` | percent |
| `mmbench_cn` | mmbench_cn_dev    | `accuracy` | percent |
| `mmvet`      | mmvet             | `score`    | percent |
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from chip_core.evaluation import aggregation
from chip_core.evaluation.outcomes import ItemOutcome
from chip_core.evaluation.reading import read_json, read_objects
from chip_core.evaluation.scorer import ScoreResult
from chip_core.evaluation.task import BENCHMARKS, ExternalBenchmark, MetricInfo
from chip_core.utils.errors import TrialError, UserError

PYTHON_VARIABLE = "CHIP_ABLATE_LMMS_PYTHON"
#: Variables in which it looks for its judge's key.
KEY_VARIABLES = ("OPENAI_API_KEY", "AZURE_API_KEY")
JUDGE_VARIABLE = "MODEL_VERSION"  # variable in which it looks for its judge
RAW_METRIC = "gpt_eval_score"  # the name of the figure in all three tasks
LOG = "lmms_eval.log"
VERSION_SCRIPT = "import importlib.metadata as m, lmms_eval; print(m.version('lmms_eval'))"
PERCENT = MetricInfo(unit="percent", goal="maximize")


@dataclass(frozen=True, kw_only=True)
class LmmsTask:
    """A benchmark as a task of lmms-eval."""

    name: str
    metric: str  # its name here
    rated: bool = False  # whether the samples have a score for each question


TASKS: Mapping[str, LmmsTask] = {
    "mmbench": LmmsTask(name="mmbench_en_dev", metric="accuracy"),
    "mmbench_cn": LmmsTask(name="mmbench_cn_dev", metric="accuracy"),
    "mmvet": LmmsTask(name="mmvet", metric="score", rated=True),
}
#: `model_type` of a model's config.json → the adapter of lmms-eval that loads it.
ADAPTERS: Mapping[str, str] = {
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "idefics2": "idefics2",
    "instructblip": "instructblip",
    "internvl": "internvl_hf",
    "gemma3": "gemma3",
}


class LmmsEvalBenchmark(ExternalBenchmark):
    """A benchmark that lmms-eval runs."""

    version = "lmms-1"  # of this interface; lmms-eval's own is recorded with the figures

    def __init__(self, task: LmmsTask) -> None:
        """Set the benchmark's task."""
        self._task = task
        self.metrics = {task.metric: PERCENT}

    def tools(self) -> Mapping[str, str]:
        """Return lmms-eval's version."""
        return {"program": _cached_version(find_python())}

    def problems(self) -> list[str]:
        """Return what is missing, before anything is trained."""
        problems = []
        try:
            read_version()
        except UserError as error:
            problems.append(str(error))
        if not any(os.environ.get(key) for key in KEY_VARIABLES):
            # Without one, lmms-eval continues and draws answers at random, or counts them 0.
            problems.append(
                f"lmms-eval asks a judge and there is no {' or '.join(KEY_VARIABLES)} in the "
                "environment"
            )
        return problems

    def ask(
        self, model: Path, *, folder: Path, batch_size: int, device: str
    ) -> tuple[ScoreResult, Mapping[str, Any]]:
        """Let lmms-eval generate and score a model's answers.

        Args:
            model: a whole Hugging Face folder; adapters are merged into one before (`export`).
            folder: the folder of its output, emptied first.
            batch_size: questions answered together.
            device: "cuda", "cpu", …

        Raises:
            UserError: it is not installed, or cannot load the model.
            TrialError: it failed; with its last line and the path of its log.
        """
        version_used = read_version()
        adapter = _find_adapter(model)
        model_path = str(model.resolve())
        if any(character in model_path for character in ",={}'\""):
            raise UserError(
                f"{model_path}: lmms-eval does not accept a path with a comma, an = or a quote"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [
            *(find_python(), "-m", "lmms_eval"),
            *("--model", adapter),
            *("--model_args", f"pretrained={model_path}"),
            *("--tasks", self._task.name),
            *("--batch_size", str(batch_size)),
            *("--output_path", str(folder.resolve())),
            "--log_samples",
            *("--device", device),
        ]
        log = folder / LOG
        try:
            with log.open("w") as file:
                completed = subprocess.run(
                    command, cwd=folder, stdout=file, stderr=subprocess.STDOUT
                )
        finally:
            _redact_keys(log)
        result_files = sorted(folder.rglob("*_results.json"))
        if completed.returncode or not result_files:  # it also exits with 0 if a task failed
            raise TrialError(f"lmms-eval failed: {_last_line(log)} ({log})")
        samples = _read_samples(self._task, result_files[-1].parent)
        scored = _parse_scored(self._task, result_files[-1], samples)
        judges = {str(row[RAW_METRIC].get("eval_model") or "") for row in samples} - {""}
        judge = ", ".join(sorted(judges)) or os.environ.get(JUDGE_VARIABLE)
        metadata: dict[str, Any] = {"program": version_used}
        return scored, metadata if judge is None else {**metadata, "judge": {"model": judge}}


def find_python() -> str:
    """Return the Python in which lmms-eval is installed."""
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def read_version() -> str:
    """Return the version of lmms-eval.

    Raises:
        UserError: it is not installed; one line with the command that installs it.
    """
    try:
        completed = subprocess.run(
            [find_python(), "-c", VERSION_SCRIPT], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired):
        completed = None
    if completed is None or completed.returncode or not completed.stdout.strip():
        raise UserError(
            f"lmms-eval is not installed for {find_python()}: pip install 'chip-ablate[lmms]', or "
            f"name the Python of an environment that has it with {PYTHON_VARIABLE}"
        )
    return f"lmms_eval {completed.stdout.split()[-1]}"


@lru_cache
def _cached_version(python: str) -> str:
    """Return lmms-eval's version, cached because it takes seconds to find."""
    return read_version()


def _find_adapter(model: Path) -> str:
    if not (model / "config.json").is_file():
        content = "adapters" if (model / "adapter_config.json").is_file() else "no config.json"
        raise UserError(
            f"{model} holds {content}: lmms-eval needs a complete model; `chip-ablate export` "
            "makes one"
        )
    model_type = read_json(model / "config.json").get("model_type")
    if model_type not in ADAPTERS:
        raise UserError(
            f"{model}: lmms-eval has no known adapter for '{model_type}' (known: "
            f"{', '.join(sorted(ADAPTERS))})"
        )
    return ADAPTERS[model_type]


def _parse_scored(task: LmmsTask, file: Path, samples: Sequence[dict[str, Any]]) -> ScoreResult:
    results = read_json(file)
    try:
        task_results = results["results"][task.name]
        value = next(
            float(task_results[key]) for key in task_results if key.split(",")[0] == RAW_METRIC
        )
        n = int(results["n-samples"][task.name]["effective"])
    except (KeyError, TypeError, ValueError, StopIteration):
        raise TrialError(
            f"lmms-eval gave no figure {RAW_METRIC} of {task.name}: {file.parent}"
        ) from None
    items: list[ItemOutcome] = []
    missing = 0
    for row in samples:
        rating = row[RAW_METRIC]
        items.append(
            aggregation.make_outcome(
                str(rating.get("question_id", row.get("doc_id"))),
                float(rating["score"]),
                group=str(rating.get("capabilities", "")),
            )
        )
        missing += not rating.get("eval_model")  # the judge did not reply: it counts 0 there
    return ScoreResult(
        metrics=(PERCENT.make_metric(task.metric, value, items),), n=n, missing=missing
    )


def _read_samples(task: LmmsTask, folder: Path) -> list[dict[str, Any]]:
    """Return the samples with a score; empty if the task has none."""
    files = sorted(folder.glob(f"*_samples_{task.name}.jsonl")) if task.rated else []
    rows = read_objects(files[-1]) if files else []
    return [
        row for row in rows if isinstance(row.get(RAW_METRIC), dict) and "score" in row[RAW_METRIC]
    ]


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()[:300]


def _redact_keys(log: Path) -> None:
    """Remove keys from its log, in case it has written one."""
    secrets = [value for key in KEY_VARIABLES if (value := os.environ.get(key))]
    text = log.read_text(errors="replace")
    if any(secret in text for secret in secrets):
        for secret in secrets:
            text = text.replace(secret, "***")
        log.write_text(text)


for _name, _task in TASKS.items():
    BENCHMARKS.register(_name)(LmmsEvalBenchmark(_task))
