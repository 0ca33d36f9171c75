"""Measure how many rows a second `chip-ablate data check` reads, in this build and in another.

    python -m benchmarks.data_check
    python -m benchmarks.data_check --other ../base --pairs 5 --json

Rows are drawn with a seed: 336 x 336 pictures, half JPEG, half PNG, of smoothed noise, so that they
compress about as photographs do; in parquet as RLHF-V has them, and as JSON lines that name files.
`--other` is a checkout of another build, run by the same interpreter: the two take turns, each in a
new process, and the ratios are those of the turns. CPU seconds are those of the process, including
the start of the command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

SIDE = 336  # pixels
PICTURES = 200  # different ones
WORDS = ["a", "red", "ball", "lies", "on", "green", "grass", "beside", "two", "dogs", "that", "run"]
COMMAND = "from orchestrator.cli import main; main()"


def make_pictures() -> list[bytes]:
    """Return pictures as files, every second one a PNG."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(PICTURES):
        small = Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        out = io.BytesIO()
        kind = "PNG" if number % 2 else "JPEG"
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, kind)
        made.append(out.getvalue())
    return made


def write_rows(folder: Path, rows: int, kind: str) -> Path:
    """Write a data set of a kind, `parquet` or `jsonl`; return its file."""
    draw = np.random.default_rng(1)
    shown = make_pictures()
    texts = [" ".join(draw.permutation(WORDS)) for _ in range(3 * rows)]
    said = [
        {"question": f"{one}?", "chosen": f"{two}.", "rejected": f"{three}."}
        for one, two, three in zip(*[iter(texts)] * 3, strict=True)
    ]
    file = folder / f"rows.{kind}"
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_pylist(
            [
                {
                    "idx": row,
                    "image": {"bytes": shown[row % PICTURES], "path": f"{row}.jpg"},
                    "text": json.dumps(text),
                }
                for row, text in enumerate(said)
            ]
        )
        parquet.write_table(table, file, row_group_size=1000)
        return file
    for number, content in enumerate(shown):
        (folder / f"{number}.img").write_bytes(content)
    with file.open("w", encoding="utf-8") as out:
        for row, text in enumerate(said):
            out.write(json.dumps({"id": row, "image": f"{row % PICTURES}.img", **text}) + "\n")
    return file


def check(build: Path, file: Path, rows: int) -> dict[str, float]:
    """Check a file in a process of its own; return its CPU and wall seconds."""
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "data", "check", str(file), "--json"],
        cwd=build,
        env={**os.environ, "PYTHONPATH": str(build)},
        check=True,
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    if json.loads(done.stdout)["good"] != rows:
        raise SystemExit(f"{build}: not every row is good: {done.stdout[:300]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu, "wall_s": wall}


def measure(builds: dict[str, Path], file: Path, rows: int, pairs: int) -> dict[str, Any]:
    """Run builds in turns; return rows a second of each, and their ratios by turn."""
    turns = []
    for number in range(pairs):
        # The order alternates, so that warm-up helps both alike.
        order = list(builds.items())[:: 1 if number % 2 == 0 else -1]
        turns.append({name: check(build, file, rows) for name, build in order})
    found: dict[str, Any] = {
        name: {
            clock: summarize_repeats([rows / turn[name][f"{clock}_s"] for turn in turns])
            for clock in ("cpu", "wall")
        }
        for name in builds
    }
    if len(builds) == 2:
        found["this_over_other"] = {
            clock: summarize_repeats(
                [turn["other"][f"{clock}_s"] / turn["this"][f"{clock}_s"] for turn in turns]
            )
            for clock in ("cpu", "wall")
        }
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=3, help="turns")
    parser.add_argument("--other", type=Path, help="a checkout of another build")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = describe_machine()
    builds = {"this": Path(__file__).resolve().parent.parent}
    if options.other is not None:
        builds["other"] = options.other.resolve()
    figures = {}
    for kind in ("parquet", "jsonl"):
        with tempfile.TemporaryDirectory() as folder:
            file = write_rows(Path(folder), options.rows, kind)
            figures[kind] = measure(builds, file, options.rows, options.pairs)
    if options.json:
        result = {
            "benchmark": "data_check",
            "machine": machine,
            "rows": options.rows,
            "rows_per_second": figures,
        }
        print(json.dumps(result))
        return
    print(format_machine(machine))
    for kind, found in figures.items():
        for name, by_clock in found.items():
            said = ", ".join(
                f"{values['median']:.4g} ({values['min']:.4g} to {values['max']:.4g}) by {clock}"
                for clock, values in by_clock.items()
            )
            print(f"{kind}, {name}: {said}")


if __name__ == "__main__":
    main()
