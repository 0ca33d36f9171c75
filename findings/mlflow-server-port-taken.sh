#!/usr/bin/env bash
# `mlflow server` exits with code 0 if its port is taken, and a server has 14 descendant processes.
#
# MLflow 3.17.2 (uvicorn 0.54.0), Python 3.11, Linux. Expected: a non-zero exit code
# if the server could not be started, so that a script or a supervisor notices.
# Seen:
#   second server on the port: "[Errno 98] ... address already in use", exit code 0
#   processes below `mlflow server`: 14 (4 workers and what starts them, 8 for jobs and periodic tasks)
#   with MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false and --workers 1: 1
# Exits with 1 once this has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq mlflow==3.17.2 uvicorn==0.54.0 psutil==7.2.2
export PATH=$folder/venv/bin:$PATH MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
mlflow --version
cd "$folder"

free_port() {
    python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Wait until the server at a port answers.
await() {
    python - "$1" <<'PYTHON'
import sys, time, urllib.request
for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=2)
        break
    except OSError:
        time.sleep(0.2)
else:
    sys.exit("no answer")
PYTHON
}

# Print how many processes are below one, when that has been the same for 10 s.
below() {
    python - "$1" <<'PYTHON'
import sys, time, psutil
seen = []
while len(seen) < 10 or len(set(seen[-10:])) > 1:
    seen.append(len(psutil.Process(int(sys.argv[1])).children(recursive=True)))
    time.sleep(1)
print(seen[-1])
PYTHON
}

port=$(free_port)
mlflow server --backend-store-uri sqlite:///one.db --host 127.0.0.1 --port "$port" >one.log 2>&1 &
server=$!
await "$port"
processes=$(below "$server")

code=0
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 \
    --backend-store-uri sqlite:///two.db --host 127.0.0.1 --port "$port" >two.log 2>&1 || code=$?
kill "$server"
wait "$server" || true
echo "second server on the port: $(grep -o 'Errno.*' two.log | tail -1), exit code $code"
echo "processes below mlflow server: $processes"

port=$(free_port)
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 \
    --backend-store-uri sqlite:///one.db --host 127.0.0.1 --port "$port" >three.log 2>&1 &
server=$!
await "$port"
few=$(below "$server")
kill "$server"
wait "$server" || true
echo "without jobs and with one worker: $few"

grep -qi "address already in use" two.log
[ "$code" = 0 ] && [ "$processes" = 14 ] && [ "$few" = 1 ]
