"""A study on machines that share no disk, through an S3-compatible server; prints figures as JSON.

    python tests/cluster/no_shared_disk.py                    # a small study
    python tests/cluster/no_shared_disk.py encoder            # a shipped one, whole
    python tests/cluster/no_shared_disk.py encoder --lose 60  # a worker machine is lost after 60 s

A head and two workers in namespaces of this machine (machines.py): each has a work directory of
its own, which no other sees, and all reach the server on the client machine. One of the workers is
taken away, by default in the middle of a training, once the storage has a checkpoint of it. Run by
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
from loopback import (  # noqa: E402
    BIN,
    FILE,
    STUDY,
    VENV,
    WORK,
    run_chip_ablate,
    run_command,
    timed,
    wait_until,
)

BUCKET, PORT = "studies", 9000
SETTINGS = {
    "AWS_ENDPOINT_URL": f"http://{machines.CLIENT}:{PORT}",
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


#: Where a worker has the files of a job that runs there.
STAGED = "/root/.cache/chip-ablate/storage"
#: What makes the small study's trainings long enough to be met, with checkpoints to go on from.
SMALL = ("training.epochs=10", "engine.checkpoint_every=4", "data.limit=64")


def main(study: str | None, lose: float | None) -> None:
    """Do it all, and print the figures."""
    os.environ.update(SETTINGS)
    head, *workers = all_machines = machines.start_machines(3)
    server = start_storage_server()
    for machine in all_machines:
        machine.run("sh", "-ec", f"mkdir -p {VENV.parent}; ln -s {BIN.parent} {VENV}")
        machine.run("mount", "-t", "tmpfs", "none", str(machines.SHARED))
    loopback.write_cluster_file(head, *workers, storage=f"s3://{BUCKET}/of-the-cluster")
    WORK.mkdir()
    (WORK / "loopback.yaml").write_text(STUDY)
    figures: dict[str, Any] = {}
    options = [] if study else [part for each in SMALL for part in ("--set", each)]
    undisturbed = None
    if study is None:
        with timed(figures, "the study on one machine, undisturbed"):
            told = run_chip_ablate(
                "run", "loopback.yaml", "--executor", "inline", "--json", *options
            )
        undisturbed = json.loads(told.stdout)["arms"]
    run_chip_ablate("cluster", "check", str(FILE))
    with timed(figures, "up"):
        run_command("ray", "up", "-y", str(FILE))
        # what can be seen without a process of Python's, before it is asked with one
        wait_until(lambda: all(loopback.is_up(worker) for worker in workers), loopback.MAX_SECONDS)
        wait_until(lambda: not loopback.find_live_problems(), loopback.MAX_SECONDS)
    if lose is None:
        threading.Thread(target=kill_training_machine, args=(workers, figures), daemon=True).start()
    else:
        threading.Timer(lose, workers[0].kill).start()
    with timed(figures, "study"):
        done = subprocess.run(
            [BIN / "chip-ablate", "run", study or "loopback.yaml", "--cluster", FILE, "--json",
             "--max-concurrent", "2", *options],
            cwd=WORK, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.returncode
    result = json.loads(done.stdout)
    figures["executed"], figures["failed"] = result["executed"], result["failed"]
    figures["arms"] = result["arms"]
    if undisturbed is not None:
        figures["differing"] = find_differing_arms(result["arms"], undisturbed)
    figures["report"] = sorted(Path(path).name for path in result["report"])
    figures["weights in the head's work directory"] = count_weight_files(head)
    figures["files in the workers' work directories"] = [
        int(worker.run("sh", "-c", f"find {machines.SHARED} -type f | wc -l"))
        for worker in workers
        if worker.is_running
    ]
    figures["objects in the storage"], figures["models in the storage"] = count_objects()
    figures["tries"] = count_attempts(head)
    run_command("ray", "down", "-y", str(FILE))
    server.kill()
    print(json.dumps(figures))


def kill_training_machine(workers: list[machines.Machine], figures: dict[str, Any]) -> None:
    """Take away the first worker machine that trains, once a checkpoint is in the storage."""
    while True:
        kept = [key for key in list_keys() if key.endswith("/state.pt")]
        for worker in workers:
            look = f"find {STAGED} -path '*/jobs/*' -name 'attempt-*' 2>/dev/null || true"
            for folder in worker.run("sh", "-c", look).split():
                attempt = folder[folder.index("/trials/") + 1 :]
                trained = worker.run("sh", "-c", f"ls {folder} 2>/dev/null || true").split()
                left = [key for key in kept if f"{attempt}/checkpoints/" in key]
                if left and "checkpoints" in trained and "trained.json" not in trained:
                    worker.kill()
                    figures["lost"] = {"machine": worker.ip, "in mid-training": max(left)}
                    print(f"taken away: {figures['lost']}", file=sys.stderr, flush=True)
                    return
        time.sleep(0.2)


def find_differing_arms(arms: list[dict[str, Any]], undisturbed: list[dict[str, Any]]) -> list[str]:
    """Return the arms whose figures are not, to the last digit, those of the study left alone."""
    here, there = ({arm["arm"]: arm["figures"] for arm in each} for each in (arms, undisturbed))
    return [arm for arm in sorted(here | there) if here.get(arm) != there.get(arm)]


def start_storage_server() -> subprocess.Popen[bytes]:
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


def count_weight_files(machine: machines.Machine) -> int:
    """Return how many files of weights a machine has in its work directory."""
    listed = machine.run("find", str(machines.SHARED), "-name", "*.safetensors")
    return len(listed.split())


def count_objects() -> tuple[int, int]:
    """Return how many objects the storage has, and how many of them are models."""
    keys = list_keys()
    return len(keys), sum(key.endswith("/model/model.safetensors") for key in keys)


def list_keys() -> list[str]:
    """Return the names of all objects in the storage."""
    import boto3

    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [each["Key"] for page in pages for each in page.get("Contents", [])]


def count_attempts(head: machines.Machine) -> dict[str, int]:
    """Return how often each trial was tried, and how many went on from a checkpoint."""
    text = head.run("cat", f"{machines.SHARED}/chip-runs/ledger/ledger.jsonl")
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
        why = machines.find_obstacle()
        if why is not None:
            raise SystemExit(f"test-cluster: {why}")
        asked = json.dumps([given.study, given.lose])
        inside = machines.make_namespace_command(Path(__file__), "inside", asked)
        os.execvp(inside[0], inside)  # who ends this process ends all of it
