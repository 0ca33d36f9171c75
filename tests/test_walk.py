"""How many files a reader opens to follow one trial: it is counted, and must not grow.

From `run_study` to the executor that is to run a study's first phase, and from `run_trial` to the
end of the first step: the files of both packages whose functions are called on the way, in a
process of its own. What is called while a module is imported does not count, and neither does
what shows the study in MLflow meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE_FOLDERS = (f"{ROOT}/chip_core/", f"{ROOT}/orchestrator/")
#: Files on the way at most: so many there are.
MAX_FILES = 60

STUDY = """
study: tiny
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 2, max_new_tokens: 2}]
"""
SHORT = {"data.limit": 10, "training.batch_size": 4, "training.epochs": 2, "training.max_steps": 4}


class WalkEnded(Exception):
    """Ends what is followed."""


def end_walk(*_: Any) -> None:
    """Follow no further."""
    sys.setprofile(None)
    raise WalkEnded


class Walk:
    """The files whose functions are called while it is followed."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._seen: set[CodeType] = set()

    def __enter__(self) -> Walk:
        threading.setprofile(self._record_call)
        sys.setprofile(self._record_call)
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        sys.setprofile(None)
        threading.setprofile(None)
        return isinstance(error, WalkEnded)

    def _record_call(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._seen:
            return
        if not code.co_filename.startswith(PACKAGE_FOLDERS):
            self._seen.add(code)
        elif code.co_flags & CO_OPTIMIZED and not _is_importing(frame):  # a function's, and called
            self._seen.add(code)
            self.files.add(Path(code.co_filename).relative_to(ROOT).as_posix())


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def collect_walked_files(folder: Path) -> dict[str, set[str]]:
    """Return the files of both ways."""
    from rich.console import Console
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from chip_core.trial import run_trial
    from orchestrator.executors.inline import InlineExecutor
    from orchestrator.plan.plan import make_plan
    from orchestrator.run import run_study
    from orchestrator.study.load import load_study
    from orchestrator.study.model import StudyChanges
    from tests.orchestrator.fakes import FakeTracker

    class Executor(InlineExecutor):
        def run(self, *_: Any) -> None:
            end_walk()

    (folder / "study.yaml").write_text(STUDY)
    plan = make_plan(load_study(folder / "study.yaml", StudyChanges(overrides=SHORT)))
    with Walk() as study:
        run_study(
            plan,
            workdir=folder / "work",
            executor=Executor,
            tracker=FakeTracker(),
            console=Console(quiet=True),
        )
    config = next(trial.config for trial in plan.trials if "chip" in trial.name)
    register_optimizer_step_post_hook(end_walk)
    with Walk() as trial:
        run_trial(config, folder=folder / "trial")
    return {"study": study.files, "trial": trial.files}


def test_one_trial_passes_through_few_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = json.loads(done.stdout.splitlines()[-1])
    assert {"orchestrator/run.py", "orchestrator/runner/phase.py"} <= set(files["study"])
    assert {"chip_core/trial.py", "chip_core/objectives/scores.py"} <= set(files["trial"])
    together = sorted({*files["study"], *files["trial"]})
    assert len(together) <= MAX_FILES, "\n".join(together)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    ways = collect_walked_files(Path(sys.argv[1]))
    print(json.dumps({name: sorted(files) for name, files in ways.items()}))
