"""Measure the time and memory of a training on many rows with images until its first step.

    python -m benchmarks.data_at_size
    python -m benchmarks.data_at_size --rows 2075 8300 --json

Rows have the pictures of benchmarks/data_check.py, in parquet as RLHF-V has them, no two with the
same bytes. A training of the embedded world's model (adapters, one step of 8 pairs) is started
twice: the first start makes the Arrow copy from which rows are read by number, the second finds it.
`pss_mb` is the most memory that the training's processes held together, including mapped files, and
`rss_mb` the most of any one of them; `seconds` are wall seconds from the start of the process to
the end of its first step, `cpu_s` CPU seconds of all its processes; those of `check data` are for
all rows. The cost of a row is the difference between the two sizes divided by the rows between
them; it extrapolates the figures to `--told` rows (RLAIF-V's 83,000).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.data_check import PICTURES, make_pictures
from benchmarks.machine import describe_machine, format_machine

#: Settings of the recipe `shapes` for each training.
SETTINGS = [
    "language_model=lora", "training.max_steps=1", "training.batch_size=8", "optimizer.warmup=0",
    "engine.micro_batch=8", "benchmarks={}",
]  # fmt: skip
GROUP = 500  # rows
FIGURES = ("seconds", "cpu_s", "check_data_s", "check_data_cpu_s", "pss_mb", "rss_mb")


def write_rows(file: Path, rows: int) -> None:
    """Write a data set, `GROUP` rows at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    shown, writer = make_pictures(), None
    for first in range(0, rows, GROUP):
        table = pa.Table.from_pylist(
            [
                {
                    "idx": row,
                    # Bytes after a picture's end are ignored by its readers.
                    "image": {"bytes": shown[row % PICTURES] + b"%08d" % row, "path": f"{row}.jpg"},
                    "text": json.dumps(
                        {"question": f"What is {row}?", "chosen": "A red ball.", "rejected": "Two."}
                    ),
                }
                for row in range(first, min(first + GROUP, rows))
            ]
        )
        if writer is None:
            writer = parquet.ParquetWriter(file, table.schema, use_dictionary=False)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def train_one_step(file: Path, out: Path, cache: Path) -> dict[str, float]:
    """Train one step on a file; return seconds and memory."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "chip_core", "train", "shapes", "--out", str(out)),
            *("--set", f"data.source={file}", *SETTINGS),
        ],
        env={**os.environ, "CHIP_ABLATE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    most = {"pss_mb": 0.0, "rss_mb": 0.0}
    first_step = 0.0
    while process.poll() is None:
        for name, held in _read_memory(process.pid).items():
            most[name] = max(most[name], held)
        curves = out / "curves.jsonl"
        if not first_step and curves.exists() and curves.stat().st_size:
            first_step = time.perf_counter() - began
        time.sleep(0.1)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(process.stdout.read()[-2000:])
    result = json.loads((out / "result.json").read_text())
    return {
        "seconds": round(first_step or time.perf_counter() - began, 2),
        "cpu_s": round(sum(result["cpu"].values()), 2),
        "check_data_s": round(result["seconds"]["check data"], 2),
        "check_data_cpu_s": round(result["cpu"]["check data"], 2),
        **{name: round(held, 1) for name, held in most.items()},
    }


def _read_memory(process: int) -> dict[str, float]:
    """Return the memory of a process and its descendants, in MB; nothing if it is gone."""
    try:
        whole = psutil.Process(process)
        held = [each.memory_full_info() for each in [whole, *whole.children(recursive=True)]]
    except psutil.Error:
        return {}
    return {
        "pss_mb": sum(each.pss for each in held) / 1e6,
        "rss_mb": max(each.rss for each in held) / 1e6,
    }


def extrapolate(
    few: dict[str, Any], many: dict[str, Any], rows: int
) -> dict[str, dict[str, float]]:
    """Extrapolate to a number of rows: the cost of few, and that of each further row."""
    further = (rows - few["rows"]) / (many["rows"] - few["rows"])
    return {
        kind: {
            name: round(few[kind][name] + further * (many[kind][name] - few[kind][name]), 1)
            for name in FIGURES
        }
        for kind in ("first", "later")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs=2, default=[2_075, 8_300])
    parser.add_argument("--told", type=int, default=83_000, help="rows that figures are told for")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    machine, measured = describe_machine(), []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as above:
            folder = Path(above)
            file = folder / "rows.parquet"
            write_rows(file, rows)
            measured.append(
                {
                    "rows": rows,
                    "file_mb": round(file.stat().st_size / 1e6, 1),
                    "first": train_one_step(file, folder / "first", folder / "cache"),
                    "later": train_one_step(file, folder / "later", folder / "cache"),
                }
            )
    result = {
        "measured": measured,
        f"told for {options.told}": extrapolate(*measured, options.told),
    }
    if options.json:
        print(json.dumps({"benchmark": "data_at_size", "machine": machine, **result}))
        return
    print(format_machine(machine))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
