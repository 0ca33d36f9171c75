"""Measure how long a slot waits for the scoring of its trials by a judge with a delay.

    python -m benchmarks.judge
    python -m benchmarks.judge --delay 0.5 --items 24 --steps 40 --json

The judge takes `--delay` seconds for an answer, half a second by default. A study of four trials on
Ray, one at a time, uses questions in MMHal-Bench's form (made here, about drawn images) and a judge
on this machine. The slot's wait is the time between a trial's answers and the start of the next
trial, by the ledger; the judge's total time over all trials is given, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine
from chip_core.shapes.world import draw_scene, make_scene
from chip_core.utils.files import read_records

PROGRAM = "from orchestrator.cli import program; program()"
STUDY = """
study: judged
recipe: shapes
factors: {{objective: [dpo, chip]}}
seeds: [0, 1]
baseline: {{objective: dpo}}
benchmarks:
  report: [{{name: mmhal, max_new_tokens: 16, judge: {{model: judge, base_url: "{url}",
             api_key_env: JUDGE_KEY, concurrency: {concurrency}}}}}]
"""


class Judge(BaseHTTPRequestHandler):
    """Answers POST /v1/chat/completions after a while."""

    delay = 0.5

    def do_POST(self) -> None:
        """Return a rating for any request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.delay)
        message = {"role": "assistant", "content": "Rating: 4"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "judge",
                 "choices": [choice]}  # fmt: skip
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@contextmanager
def run_judge(delay: float) -> Iterator[str]:
    """Yield the address of a judge that takes `delay` seconds for an answer."""
    handler = type("Handler", (Judge,), {"delay": delay})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def write_questions(folder: Path, items: int) -> None:
    """Write a benchmark in MMHal-Bench's form, about drawn images."""
    (folder / "mmhal" / "images").mkdir(parents=True)
    rows = []
    for number in range(items):
        shown = make_scene("test", number)
        name = f"{number}_o.png"
        draw_scene(shown).save(folder / "mmhal" / "images" / name)
        rows.append(
            {
                "question_type": "attribute",
                "image_id": f"id{number}",
                "image_src": f"https://example.org/8/{name}",
                "image_content": [thing.shape for thing in shown.things],
                "question": f"what do you see? ({number})",
                "gt_answer": "shapes",
                "model_answer": "",
            }
        )
    (folder / "mmhal" / "response_template.json").write_text(json.dumps(rows))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the study; return seconds of the slot and of the judge."""
    with tempfile.TemporaryDirectory() as place, run_judge(options.delay) as url:
        folder = Path(place)
        write_questions(folder / "data", options.items)
        text = STUDY.format(url=url, concurrency=options.concurrency)
        (folder / "judged.yaml").write_text(text)
        command = [sys.executable, "-c", PROGRAM, "run", str(folder / "judged.yaml")]
        command += ["--workdir", str(folder / "runs"), "--benchmark-data", str(folder / "data")]
        # A large learning rate: models with equal answers would share the judge's replies.
        command += ["--max-concurrent", "1", "--set", f"training.max_steps={options.steps}"]
        command += ["--set", "optimizer.lr=1e-3"]
        ended = subprocess.run(
            command,
            env={**os.environ, "JUDGE_KEY": "none"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise SystemExit(f"the study failed:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        return compute_slot_times(read_records(folder / "runs" / "ledger" / "ledger.jsonl"))


def compute_slot_times(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute the slot's times from the ledger."""
    times: dict[str, dict[str, float]] = {}
    judged: dict[str, float] = {}
    for record in records:
        times.setdefault(record["fingerprint"], {})[record["event"]] = record["time"]
        if record["event"] == "finished":
            judged[record["fingerprint"]] = sum(
                seconds for phase, seconds in record["seconds"].items() if phase[:5] == "score"
            )
    trials = sorted(times.values(), key=lambda each: each["started"])
    waits = [
        later["started"] - earlier["answered"]
        for earlier, later in zip(trials, trials[1:], strict=False)
    ]
    whole = trials[-1]["answered"] - trials[0]["started"]
    return {
        "trials": len(trials),
        "slot_s": round(whole, 2),
        "waits_s": [round(wait, 3) for wait in waits],
        "waits_percent": round(100 * sum(waits) / whole, 2),
        "scoring_s": [round(seconds, 2) for seconds in judged.values()],
        "scoring_percent": round(100 * sum(judged.values()) / whole, 1),
        "from_last_answers_s": round(
            max(t["finished"] for t in trials) - trials[-1]["answered"], 2
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--delay", type=float, default=0.5, help="seconds of an answer")
    parser.add_argument("--items", type=int, default=24, help="answers of a trial")
    parser.add_argument("--concurrency", type=int, default=2, help="calls at a time")
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    machine, found = describe_machine(), measure(options)
    if options.json:
        settings = {name: getattr(options, name) for name in ("delay", "items", "concurrency")}
        print(json.dumps({"benchmark": "judge", "machine": machine, **settings, **found}))
        return
    print(format_machine(machine))
    print(
        f"{found['trials']} trials, one at a time: the slot waits {found['waits_percent']} % of "
        f"{found['slot_s']} s; scoring takes {found['scoring_percent']} % of it, beside it"
    )


if __name__ == "__main__":
    main()
