"""A study on machines that share no disk, through an S3-compatible server; prints figures as JSON.

    python tests/cluster/apart.py                    # a small study
    python tests/cluster/apart.py encoder            # a shipped one, whole
    python tests/cluster/apart.py encoder --lose 60  # a worker machine goes after so many seconds

A head and two workers in namespaces of this machine (machines.py): each has a work directory of its
own, which no other sees, and all reach the server on the client machine. Run by
`make test-cluster`, and by tests/cluster/test_loopback.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import loopback  # noqa: E402
import machines  # noqa: E402
from loopback import BIN, FILE, STUDY, VENV, WORK, command, ours, timed, until  # noqa: E402

BUCKET, PORT = "studies", 9000
SETTINGS = {
    "AWS_ENDPOINT_URL": f"http://{machines.CLIENT}:{PORT}",
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def main(study: str | None, lose: float | None) -> None:
    """Do it all, and print the figures."""
    os.environ.update(SETTINGS)
    head, *workers = found = machines.start(3)
    server = serve()
    for machine in found:
        machine.inside("sh", "-ec", f"mkdir -p {VENV.parent}; ln -s {BIN.parent} {VENV}")
        machine.inside("mount", "-t", "tmpfs", "none", str(machines.SHARED))
    loopback.fill_in(head, *workers, storage=f"s3://{BUCKET}/of-the-cluster")
    WORK.mkdir()
    (WORK / "loopback.yaml").write_text(STUDY)
    figures: dict[str, Any] = {}
    ours("cluster", "check", str(FILE))
    with timed(figures, "up"):
        command("ray", "up", "-y", str(FILE))
        until(lambda: not loopback.live_problems(), 400)
    if lose is not None:
        threading.Timer(lose, workers[0].end).start()
    options = ["--set", "training.max_steps=8", "--set", "engine.checkpoint_every=2",
               "--set", "data.limit=64"]  # fmt: skip
    with timed(figures, "study"):
        done = subprocess.run(
            [BIN / "chip-ablate", "run", study or "loopback.yaml", "--cluster", FILE, "--json",
             "--max-concurrent", "2", *([] if study else options)],
            cwd=WORK, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.returncode
    result = json.loads(done.stdout)
    figures["executed"], figures["failed"] = result["executed"], result["failed"]
    figures["arms"] = result["arms"]
    figures["report"] = sorted(Path(path).name for path in result["report"])
    figures["weights in the head's work directory"] = weights(head)
    figures["files in the workers' work directories"] = [
        int(worker.inside("sh", "-c", f"find {machines.SHARED} -type f | wc -l"))
        for worker in workers
        if worker.lives
    ]
    figures["objects in the storage"], figures["models in the storage"] = objects()
    figures["tries"] = attempts(head)
    command("ray", "down", "-y", str(FILE))
    server.kill()
    print(json.dumps(figures))


def serve() -> subprocess.Popen[bytes]:
    """Start the server, with its bucket."""
    import boto3

    with (machines.BASE / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "moto_server", "-H", machines.CLIENT, "-p", str(PORT)], stdout=log, stderr=log
        )
    for _ in range(60):
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            return server
        except Exception:
            time.sleep(0.5)
    raise SystemExit((machines.BASE / "s3.log").read_text()[-2000:])


def weights(machine: machines.Machine) -> int:
    """Return how many files of weights a machine has in its work directory."""
    listed = machine.inside("find", str(machines.SHARED), "-name", "*.safetensors")
    return len(listed.split())


def objects() -> tuple[int, int]:
    """Return how many objects the storage has, and how many of them are models."""
    import boto3

    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return len(keys), sum(key.endswith("/model/model.safetensors") for key in keys)


def attempts(head: machines.Machine) -> dict[str, int]:
    """Return how often each trial was tried, and how many went on from a checkpoint."""
    text = head.inside("cat", f"{machines.SHARED}/chip-runs/ledger/ledger.jsonl")
    entries = [json.loads(line) for line in text.splitlines()]
    return {
        "attempts": sum(entry["event"] == "started" for entry in entries),
        "finished": sum(entry["event"] == "finished" for entry in entries),
        "resumed": sum("resumed after step" in str(entry.get("notes")) for entry in entries),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        main(*json.loads(sys.argv[2]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("study", nargs="?")
        parser.add_argument("--lose", type=float)
        given = parser.parse_args()
        why = machines.lacking()
        if why is not None:
            raise SystemExit(f"test-cluster: {why}")
        asked = json.dumps([given.study, given.lose])
        inside = machines.in_namespaces(Path(__file__), "inside", asked)
        os.execvp(inside[0], inside)  # who ends this process ends all of it
