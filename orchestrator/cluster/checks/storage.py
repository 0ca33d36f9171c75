"""Check that all nodes of a cluster share the storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from chip_core.utils.errors import UserError
from orchestrator.cluster.checks.start_commands import COMMAND_LISTS
from orchestrator.cluster.config import LOCAL_PROVIDER, SETTINGS_KEY, ClusterFile, Problem
from orchestrator.storage.remote import validate_uri

#: Folders that are local to each machine.
_LOCAL_FOLDERS = (
    "/tmp",
    "/var/tmp",
    "/dev",
    "/run",
    "/root",
    "/proc",
    "/sys",
    "/opt",
    "/usr",
    "/etc",
)


def storage_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield why a machine would not see another's files, as far as the cluster file shows."""
    settings = cluster.settings
    if settings is None:
        return
    if (settings.shared is None) == (settings.storage is None):
        yield Problem(
            key=SETTINGS_KEY,
            message="set the storage that all machines share: `shared`, a folder that each "
            "mounts, or `storage`, a URI such as s3://BUCKET/FOLDER; one of the two",
        )
    if settings.storage is not None:
        try:
            validate_uri(settings.storage)
        except UserError as error:
            message = str(error).removeprefix("--storage: ")
            yield Problem(key=f"{SETTINGS_KEY}.storage", message=message)
    if settings.shared is not None:
        yield from _shared_problems(cluster, settings.shared, settings.workdir)


def _shared_problems(cluster: ClusterFile, mounted: str, work: str) -> Iterator[Problem]:
    shared, workdir = PurePosixPath(mounted), PurePosixPath(work)
    if not workdir.is_relative_to(shared):
        yield Problem(
            key=f"{SETTINGS_KEY}.workdir",
            message=f"{workdir} is not in {shared} (`shared`), so each machine would have its "
            "own: move it there",
        )
    local_folders = [folder for folder in _LOCAL_FOLDERS if shared.is_relative_to(folder)]
    if local_folders or shared == PurePosixPath("/"):
        yield Problem(
            key=f"{SETTINGS_KEY}.shared",
            message=f"{shared}: each machine has its own "
            f"{local_folders[0] if local_folders else '/'}: mount shared "
            "storage elsewhere (/mnt/…)",
        )
    if cluster.provider != LOCAL_PROVIDER and not _is_mounted(cluster, str(shared)):
        yield Problem(
            key=f"{SETTINGS_KEY}.shared",
            message=f"no command mounts {shared} on new machines: add one to setup_commands",
        )


def _is_mounted(cluster: ClusterFile, path: str) -> bool:
    """Return whether a command that every machine runs mounts the path."""
    everywhere = [name for name in COMMAND_LISTS if not name.startswith(("head_", "worker_"))]
    return any(
        "mount" in command and path in command
        for name in everywhere
        for command in cluster.commands(name)
    )
