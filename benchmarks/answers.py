"""Compare this build's speed of answering with that of another tree, in turns, by CPU time.

    python -m benchmarks.answers --against TREE [--items 1000] [--pictures 20] [--rounds 3] [--json]

- `described`: the embedded world's questions, one a picture, about 20 tokens an answer.
- `asked`: 15 questions on each picture of 576 tokens, as AMBER's, on the small LLaVA with random
  weights of benchmarks/generation.py; an answer is at most two tokens.

Each build answers in its own process, in batches of 64 on one thread, and the answers must be the
same. A round's ratio is that of two CPU times measured in turn: other load slows both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]

#: Runs one round of answers for each line on stdin.
WORKER = """
import hashlib, json, sys, time
import torch
torch.set_num_threads(1)
from benchmarks.generation import large_pictures, questions
from chip_core.evaluation import BENCHMARKS
from chip_core.models import loading
try:
    from chip_core.config.trial import ModelConfig
    from chip_core.evaluation.inference import generate
except ImportError:  # build 82a6933
    from chip_core.config import ModelConfig
    from chip_core.evaluation.generation import generate
count, pictures = map(int, sys.argv[1:])
shapes = BENCHMARKS["shapes"].items("report", data=None, protocol="official")[:count]
loads = {
    "described": (*loading.load(ModelConfig(path="shapes")), shapes, 32),
    "asked": (*large_pictures(), questions(pictures=pictures, each=15), 2),
}
print(flush=True)
for line in sys.stdin:
    model, processor, items, longest = loads[line.strip()]
    began = time.process_time()
    said = generate(model, processor, items, max_new_tokens=longest, batch_size=64)
    took = time.process_time() - began
    mark = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    print(json.dumps({"cpu": took, "items": len(items), "answers": mark}), flush=True)
"""


class Build:
    """A tree of the product, in a process that answers on request."""

    def __init__(self, tree: Path, items: int, pictures: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(items), str(pictures)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        )
        self._read()

    def answer(self, load: str) -> dict[str, Any]:
        """Answer a load's questions; return CPU seconds, their number, and the answers' hash."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{load}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._read())
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the build's process ended"
        return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="another build's tree")
    parser.add_argument("--items", type=int, default=1000, help="questions of `described`")
    parser.add_argument("--pictures", type=int, default=20, help="pictures of `asked`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    options = parser.parse_args()
    builds = [Build(tree, options.items, options.pictures) for tree in (options.against, HERE)]
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread each, load "
        f"{os.getloadavg()[0]:.0f}",
        "against": _describe_tree(options.against),
        "this": _describe_tree(HERE),
    }
    for load in ("described", "asked"):
        rounds = [[build.answer(load) for build in builds] for _ in range(options.rounds)]
        marks = {said["answers"] for pair in rounds for said in pair}
        ratios = [other["cpu"] / this["cpu"] for other, this in rounds]
        found[load] = {
            "items": rounds[0][0]["items"],
            "cpu seconds": [[round(said["cpu"], 2) for said in pair] for pair in rounds],
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ratio": round(statistics.median(ratios), 3),
            "same answers": len(marks) == 1,
        }
    for build in builds:
        build.close()
    print(json.dumps(found, indent=None if options.json else 1))


def _describe_tree(tree: Path) -> str:
    """Return a tree's commit, and a hash of its uncommitted changes."""
    git = ["git", "-C", str(tree)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run([*git, "diff", "HEAD"], capture_output=True)
    changed = hashlib.sha256(changes.stdout).hexdigest()[:8] if changes.stdout else ""
    return f"{commit.stdout.strip()}{changed and f' changed ({changed})'}"


if __name__ == "__main__":
    main()
