"""ui: MLflow's pages on a work directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from orchestrator.commands.options import workdir_of
from orchestrator.commands.values import Text, Whole


@click.command(epilog="Example: chip-ablate ui --port 5000")
@workdir_of("Whose runs to show.")
@click.option("--port", type=Whole(1, 65535), default=5000, show_default=True)
@click.option(
    "--host", type=Text(), default="127.0.0.1", show_default=True, help="Address to listen on."
)
def ui(workdir: Path, port: int, host: str) -> int:
    """Open MLflow's pages on a work directory."""
    import subprocess

    from chip_core.errors import UserError

    database = workdir.absolute() / "mlflow.db"
    if not database.exists():
        raise UserError(f"no runs in {workdir}: run a study first, or name its --workdir")
    click.echo(f"MLflow on {workdir}: http://{host}:{port} (Ctrl-C ends it)")
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--backend-store-uri", f"sqlite:///{database}",
        "--artifacts-destination", str(workdir.absolute() / "artifacts"),
        "--host", host, "--port", str(port),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0
