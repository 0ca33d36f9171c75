#!/usr/bin/env bash
# Ray: a local `ray.init` takes seconds longer where another Ray runs on the machine. The agent of each
# node wants port 52365 for HTTP, which the first one has. The second one's tries six times, waiting longer
# each time, before its node is registered; it then goes on without its HTTP server, and `ray.init` says
# nothing. `ray start` takes `--dashboard-agent-listen-port`; `ray.init` has nothing of that kind.
# What is expected: another port, as Ray finds for its other servers of a local start, or no wait.
#
# Seen with Ray 2.60.0 (with the extra `default`), Python 3.11, Linux:
#   port free: no try failed
#   port taken: 6 tries failed, ray.init took 3 s longer or more
# Ends with 1 where that is otherwise.
# It cannot be seen, and ends with 2, where another Ray has the port already.
set -euo pipefail
folder=$(mktemp -d /tmp/ray-XXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[default]==2.60.0'
cat > "$folder/start.py" <<'PY'
import os
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import ray

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def start(name):
    """Return the seconds of a local start, and how many tries its agent's log tells of."""
    folder = Path(sys.argv[1]) / name
    os.environ["RAY_TMPDIR"] = str(folder)
    began = time.monotonic()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    took = time.monotonic() - began
    time.sleep(2)
    log = folder / "ray" / "session_latest" / "logs" / "dashboard_agent.log"
    ray.shutdown()
    text = log.read_text()
    failed = text.count("Failed to bind to port 52365") + text.count("#52365 failed to bind after")
    return took, failed


with closing(socket.socket()) as other:
    if other.connect_ex((socket.gethostbyname(socket.gethostname()), 52365)) == 0:
        print("another Ray runs here")
        sys.exit(2)
start("first")  # files are read from the disk for the first time
free, none = start("free")
with closing(socket.socket()) as other:
    other.bind(("", 52365))
    other.listen()
    taken, failed = start("taken")
print(f"port free: {free:.1f} s, {none} tries failed")
print(f"port taken: {taken:.1f} s, {failed} tries failed")
sys.exit(not (none == 0 and failed == 6 and taken - free > 2))
PY
"$folder/venv/bin/python" -c 'import ray; print("Ray", ray.__version__)'
"$folder/venv/bin/python" "$folder/start.py" "$folder"
